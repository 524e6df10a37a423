"""The question-type data: what is read, and how it is dealt to devices."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.assets import cached_path
from demo.smollm2 import FOLDER_NAME
from demo.trec import (
    LABEL_WORDS,
    LABELS,
    PROMPT,
    QUESTIONS,
    Question,
    normalized,
    own_labels,
    parse,
    questions,
    record,
    write_split,
)
from edge_sdk.errors import ConfigError, DataError, StorageError
from tests.demo.real_assets import use_real_cache

POOL = [Question(f"What is {label} {i} ?", label) for label in LABELS for i in range(200)]
SCARCE = [question for question in POOL if question.label != "ABBR"] + POOL[:20]
DEVICES = ("phone", "laptop", "board", "desktop")


def _read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_questions_that_read_the_same_are_kept_once():
    text = "DESC:def What is `` dew point '' ?\nDESC:def what is dew  point?\n\nLOC:city Where ?\n"

    assert parse(text) == [
        Question("What is `` dew point '' ?", "DESC"),
        Question("Where ?", "LOC"),
    ]


@pytest.mark.parametrize("line", ["WHAT:def Why ?", "DESC Why ?", "DESC:def ", "Why"])
def test_line_of_another_form_is_refused_with_its_number(line: str):
    with pytest.raises(DataError, match="line 2 "):
        parse(f"LOC:city Where ?\n{line}\n")


def test_record_is_the_prompt_and_the_word_of_the_type():
    assert record(Question("Who ?", "HUM")) == {
        "prompt": "Question: Who ?\nThe answer is a",
        "completion": " person",
    }


@given(count=st.integers(2, 12), seed=st.integers(0, 99))
def test_own_types_cover_all_six_and_no_device_owns_more_than_three(count: int, seed: int):
    owned = own_labels([f"d{i}" for i in range(count)], seed)

    assert {label for labels in owned.values() for label in labels} == set(LABELS)
    assert {len(set(labels)) for labels in owned.values()} == {3 if count == 2 else 2}


def test_no_question_is_in_two_files(tmp_path: Path):
    split = write_split(tmp_path, DEVICES, 80, 300, seed=3, pool=SCARCE)

    files = [*(device.path for device in split.devices.values()), split.heldout]
    prompts = [normalized(line["prompt"]) for file in files for line in _read(file)]
    assert len(prompts) == 4 * 80 + 300
    assert len(set(prompts)) == len(prompts)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(x.name for x in files)


def test_nine_tenths_of_a_device_are_of_its_own_types(tmp_path: Path):
    split = write_split(tmp_path, DEVICES, 150, 100, seed=3, pool=POOL)

    for device in split.devices.values():
        words = Counter(line["completion"] for line in _read(device.path))
        assert device.labels == {label: words[LABEL_WORDS[label]] for label in LABELS}
        assert device.examples == sum(words.values()) == 150
        own = [device.labels[label] for label in device.own_labels]
        assert sum(own) == 135
        assert max(own) - min(own) <= 15


def test_heldout_keeps_the_natural_mix(tmp_path: Path):
    split = write_split(tmp_path, DEVICES, 50, 300, seed=3, pool=SCARCE)

    words = Counter(line["completion"] for line in _read(split.heldout))
    assert words[LABEL_WORDS["ABBR"]] < 20
    assert min(words[LABEL_WORDS[x]] for x in LABELS if x != "ABBR") > 30


def test_scarce_type_is_shared_by_the_devices_that_own_it(tmp_path: Path):
    names = [f"d{i}" for i in range(6)]
    split = write_split(tmp_path, names, 60, 10, seed=0, pool=SCARCE)

    owners = [x for x in split.devices.values() if "ABBR" in x.own_labels]
    counts = [device.labels["ABBR"] for device in owners]
    assert len(counts) == 2
    assert max(counts) - min(counts) <= 2


def test_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path: Path):
    def written(folder: str, seed: int) -> list[bytes]:
        split = write_split(tmp_path / folder, DEVICES, 40, 30, seed=seed, pool=POOL)
        files = [*(device.path for device in split.devices.values()), split.heldout]
        return [path.read_bytes() for path in files]

    assert written("one", 5) == written("two", 5)
    assert written("one", 5) != written("three", 6)


@pytest.mark.parametrize(
    ("devices", "examples", "heldout", "said"),
    [
        (["phone"], 10, 10, "at least two"),
        (["phone", "phone"], 10, 10, "each once"),
        (["phone", "../laptop"], 10, 10, "laptop"),
        (["phone", "heldout"], 10, 10, "heldout"),
        (["phone", "laptop"], 0, 10, "examples_per_device=0"),
        (["phone", "laptop"], 10, 0, "heldout=0"),
        (["phone", "laptop"], 900, 10, "fewer examples"),
        (["phone", "laptop"], 10, 5000, "fewer examples"),
    ],
)
def test_impossible_split_is_refused_before_anything_is_written(
    tmp_path: Path, devices: list[str], examples: int, heldout: int, said: str
):
    folder = tmp_path / "split"

    with pytest.raises(ConfigError, match=said):
        write_split(folder, devices, examples, heldout, seed=0, pool=POOL)

    assert not folder.exists()


def test_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match="cannot be written"):
        write_split(tmp_path / "file" / "split", DEVICES, 10, 10, seed=0, pool=POOL)


def test_published_questions_are_the_known_ones(monkeypatch: pytest.MonkeyPatch):
    use_real_cache(monkeypatch)
    if not cached_path(QUESTIONS).is_file():
        pytest.skip("the questions are not in the demo's cache: run the demo once")

    found = questions()

    assert len(found) == 5376
    assert min(Counter(question.label for question in found).items(), key=lambda x: x[1]) == (
        "ABBR",
        86,
    )
    assert all(question.text.isascii() for question in found)


def test_every_label_word_is_one_token_that_does_not_reach_into_the_prompt(
    monkeypatch: pytest.MonkeyPatch,
):
    folder = use_real_cache(monkeypatch) / FOLDER_NAME
    if not folder.is_dir():
        pytest.skip("the model is not in the demo's cache: run the demo once")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = PROMPT.format(question="Who ?")
    start = tokenizer.encode(prompt).ids

    ids = [tokenizer.encode(prompt + word).ids for word in LABEL_WORDS.values()]

    assert all(found[:-1] == start for found in ids)
    assert len({found[-1] for found in ids}) == len(LABELS)
