"""The study's data as folders that a simulation reads: one file per device, and what is held out.

Everything is under ``.study`` in the current folder, so that the configurations, which name it, say
the same on every machine. The same seed writes the same files.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.base_models import base_folder
from bench.study.sources import COMMONSENSE, Question, questions, reviews, speeches
from demo import trec

ROOT = Path(".study")
DEVICES = 24
EXAMPLES = 80
_SEED = 0
_DIRICHLET = 0.5
_SPEECH_WORDS = 32
_HELD_OUT = {"trec": 200, "reviews": 60, "speeches": 48}
_HELD_OUT_QUESTIONS = 12  # of each set

Record = Mapping[str, Any]


def prepare() -> None:
    """Write every data set and link every model that is not there yet."""
    ROOT.mkdir(exist_ok=True)
    for model in ("minilm", "smollm2"):
        link = ROOT / model
        if not link.exists():
            link.symlink_to(base_folder(model), target_is_directory=True)
    for name, write in _SETS.items():
        folder = ROOT / name
        if not folder.exists():
            partial = ROOT / f"{name}.partial"
            partial.mkdir(exist_ok=True)
            write(partial)
            partial.rename(folder)


def _trec(folder: Path) -> None:
    """Questions by type of answer, for a classifier; devices see the types skewed."""
    rng = np.random.default_rng(_SEED)
    pool = trec.questions()
    order = rng.permutation(len(pool))
    records = [{"text": pool[i].text, "label": pool[i].label} for i in order]
    held_out = _HELD_OUT["trec"]
    by_label: dict[str, list[Record]] = defaultdict(list)
    for record in records[held_out:]:
        by_label[record["label"]].append(record)
    _write(folder, "heldout", records[:held_out])
    _write_devices(folder, _skewed(by_label, rng))


def _reviews(folder: Path) -> None:
    """Reviews by movie: each device has some movies, and the held-out ones are of others."""
    rng = np.random.default_rng(_SEED)
    by_movie: dict[str, list[Record]] = defaultdict(list)
    for review in reviews():
        word = " positive" if review.is_fresh else " negative"
        prompt = f"Review: {review.text}\nThe review is"
        by_movie[review.movie].append({"prompt": prompt, "completion": word})
    movies = sorted(by_movie)
    rng.shuffle(movies)
    rest = iter(movies)
    held_out: list[Record] = []
    while len(held_out) < _HELD_OUT["reviews"]:
        held_out += by_movie[next(rest)][:10]
    devices = []
    for _ in range(DEVICES):
        own: list[Record] = []
        while len(own) < EXAMPLES:
            own += by_movie[next(rest)]
        devices.append(own[:EXAMPLES])
    held_out = held_out[: _HELD_OUT["reviews"]]
    words = [" positive", " negative"]
    _write(
        folder,
        "choices",
        [
            {"prompt": x["prompt"], "choices": words, "gold": words.index(x["completion"])}
            for x in held_out
        ],
    )
    _write_devices(folder, devices)


def _commonsense(folder: Path) -> None:
    """Three sets of questions, each device with its own mix of them."""
    rng = np.random.default_rng(_SEED)
    by_task: dict[str, list[Record]] = {}
    held_out: list[Question] = []
    for task in COMMONSENSE:
        pool = questions(task, "train")
        by_task[task] = [_answered(pool[i]) for i in rng.permutation(len(pool))]
        kept = questions(task, "val")
        held_out += [kept[i] for i in rng.permutation(len(kept))[:_HELD_OUT_QUESTIONS]]
    _write(
        folder,
        "choices",
        [{"prompt": x.prompt, "choices": x.choices, "gold": x.gold} for x in held_out],
    )
    _write_devices(folder, _skewed(by_task, rng))


def _speeches(folder: Path) -> None:
    """Addresses by president: passages to learn, and later ones of the same speakers held out."""
    rng = np.random.default_rng(_SEED)
    by_speaker = {name: _passages(texts) for name, texts in speeches().items()}
    able = sorted(name for name, passages in by_speaker.items() if len(passages) >= 2 * EXAMPLES)
    chosen = sorted(rng.permutation(able)[:DEVICES].tolist())
    each = _HELD_OUT["speeches"] // DEVICES
    _write(folder, "heldout", [x for name in chosen for x in by_speaker[name][-each:]])
    _write_devices(folder, [by_speaker[name][:EXAMPLES] for name in chosen])


def _passages(texts: Sequence[str]) -> list[Record]:
    words = " ".join(texts).split()
    starts = range(0, len(words) - _SPEECH_WORDS, _SPEECH_WORDS)
    return [{"text": " ".join(words[start : start + _SPEECH_WORDS])} for start in starts]


def _answered(question: Question) -> Record:
    return {"prompt": question.prompt, "completion": question.choices[question.gold]}


def _skewed(piles: Mapping[str, list[Record]], rng: np.random.Generator) -> list[list[Record]]:
    """Deal piles out, each device by shares of its own, drawn from a Dirichlet distribution."""
    names = sorted(piles)
    rest = {name: iter(pile) for name, pile in piles.items()}
    devices = []
    for _ in range(DEVICES):
        counts = rng.multinomial(EXAMPLES, rng.dirichlet([_DIRICHLET] * len(names)))
        own = [
            x for name, count in zip(names, counts, strict=True) for x in islice(rest[name], count)
        ]
        for name in names:  # a pile that ran out is made up for by others
            own += islice(rest[name], EXAMPLES - len(own))
        devices.append(own)
    return devices


def _write_devices(folder: Path, devices: Sequence[Sequence[Record]]) -> None:
    for number, records in enumerate(devices):
        _write(folder, f"device-{number:02d}", records)


def _write(folder: Path, name: str, records: Sequence[Record]) -> None:
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


_SETS: dict[str, Callable[[Path], None]] = {
    "trec": _trec,
    "reviews": _reviews,
    "commonsense": _commonsense,
    "speeches": _speeches,
}
