"""Another process tokenizes as this one would, tells its errors, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import DataError, DeviceError, EdgeError, ModelError, OutOfMemory
from edge_sdk.text import token_file
from edge_sdk.text.data import load_examples
from edge_sdk.text.example import Example
from edge_sdk.text.token_file import tokenized_examples
from edge_sdk.text.tokenizer import load_tokenizer
from tests.sdk.parts import QUESTIONS, TEXTS, causal_spec, classifier_spec
from tests.tiny_model import write_jsonl

ROOT = Path(__file__).parent.parent.parent
LENGTH = 32
CHAT = {
    "messages": [
        {"role": "user", "content": "what is red"},
        {"role": "assistant", "content": "a number"},
    ]
}
EXAMPLES = [Example([5, 6, 7], [False, True, True]), Example([9] * 9, [True] * 9)]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "questions.jsonl", [*QUESTIONS, CHAT, {"text": "who is ?"}])


def here(data: Path, folder: Path, base, max_length: int = LENGTH) -> list[Example]:
    """What this process makes of a file."""
    return load_examples(data, load_tokenizer(folder), base, max_length)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, transformers: str) -> None:
    """Let every new interpreter find this module instead of transformers."""
    (folder / "transformers.py").write_text(transformers, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")


@pytest.fixture(autouse=True)
def without_tokenizers_here(monkeypatch):
    """Other tests imported them into this process; a device that trains has not."""
    monkeypatch.setattr(token_file, "_TOKENIZERS", "not imported")


def test_tokenizers_that_are_here_already_are_used(questions, tiny_llama, monkeypatch):
    monkeypatch.setattr(token_file, "_TOKENIZERS", "sys")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert token_file.tokenized_examples(questions, tiny_llama, causal_spec(), 64)


def test_causal_examples_are_those_of_this_process(questions, tiny_llama):
    found = tokenized_examples(questions, tiny_llama, causal_spec(), 5)
    assert found == here(questions, tiny_llama, causal_spec(), 5)
    assert len(found) == len(QUESTIONS) + 2


def test_torch_is_not_imported_for_it(questions, tiny_llama, tmp_path_factory, monkeypatch):
    """It would take some seconds and a hundred megabytes."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "torch.py").write_text("import os; os._exit(7)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    found = tokenized_examples(questions, tiny_llama, causal_spec(), LENGTH)
    assert found == here(questions, tiny_llama, causal_spec())


def test_classifier_examples_are_those_of_this_process(tmp_path, tiny_bert):
    texts = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    found = tokenized_examples(texts, tiny_bert, classifier_spec(), LENGTH)
    assert found == here(texts, tiny_bert, classifier_spec())
    assert [example.label for example in found] == [0, 1, 2, 0, 1, 2]


def test_relative_paths_are_those_of_any_current_folder(questions, tiny_llama, monkeypatch):
    monkeypatch.chdir(questions.parent)
    found = tokenized_examples(Path(questions.name), tiny_llama, causal_spec(), LENGTH)
    assert found == here(questions, tiny_llama, causal_spec())


def test_nothing_is_written_beside_the_data_or_to_a_temporary_folder(
    questions, tiny_llama, tmp_path_factory, monkeypatch
):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    tokenized_examples(questions, tiny_llama, causal_spec(), LENGTH)
    assert list(temporary.iterdir()) == []
    assert list(questions.parent.iterdir()) == [questions]


def test_this_process_imports_neither_the_tokenizers_nor_torch(questions, tiny_llama):
    script = f"""
import sys
from pathlib import Path
from edge_sdk.text.token_file import tokenized_examples
from edge_sdk.wire.task import BaseModel
base = BaseModel(model="tiny", digest="0" * 64)
found = tokenized_examples(Path({str(questions)!r}), Path({str(tiny_llama)!r}), base, {LENGTH})
print(len(found), *sorted({{"transformers", "tokenizers", "jinja2", "torch"}} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == [str(len(QUESTIONS) + 2)]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ([{"text": "who"}, {"prompt": "who is the secret"}], 2),
        ([{"text": "who"}, {"text": "why"}, {"text": 3}], 3),
    ],
)
def test_bad_line_is_the_same_data_error_with_file_and_line(tmp_path, tiny_llama, lines, line):
    data = write_jsonl(tmp_path / "private.jsonl", lines)
    with pytest.raises(DataError) as expected:
        here(data, tiny_llama, causal_spec())
    with pytest.raises(DataError, match=rf"private\.jsonl:{line}: ") as found:
        tokenized_examples(data, tiny_llama, causal_spec(), LENGTH)
    assert str(found.value) == str(expected.value)
    assert type(found.value) is type(expected.value)


@pytest.mark.parametrize("name", ["missing.jsonl", "m\udcffssing.jsonl"], ids=["UTF-8", "bytes"])
def test_missing_file_is_the_same_data_error(tmp_path, tiny_llama, name):
    with pytest.raises(DataError) as expected:
        here(tmp_path / name, tiny_llama, causal_spec())
    with pytest.raises(DataError) as found:
        tokenized_examples(tmp_path / name, tiny_llama, causal_spec(), LENGTH)
    assert str(found.value) == str(expected.value)


def test_folder_without_a_tokenizer_is_the_same_model_error(questions, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError) as expected:
        here(questions, tmp_path / "empty", causal_spec())
    with pytest.raises(ModelError) as found:
        tokenized_examples(questions, tmp_path / "empty", causal_spec(), LENGTH)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("transformers", "kind", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", DeviceError, r"was killed \(SIGKILL\)"),
        ("import os; os._exit(7)", DeviceError, "exit status 7"),
        ("import os; os._exit(3)", DeviceError, "exit status 3"),
        ("import os; os.write(1, b'{}'); os._exit(0)", DeviceError, "arrived damaged"),
        ("raise ImportError('no library')", DeviceError, r"no library.*edge-sdk\[train\]"),
        ("raise MemoryError", OutOfMemory, "memory ran out"),
        (
            "raise ValueError('a secret')",
            DeviceError,
            r"with ValueError in transformers\.py, line 1",
        ),
    ],
    ids=["killed", "exits", "mute", "nothing", "not installed", "memory", "broken"],
)
def test_process_that_ends_early_is_one_clear_error_without_private_text(
    questions, tiny_llama, tmp_path_factory, monkeypatch, capfd, caplog, transformers, kind, said
):
    install(monkeypatch, tmp_path_factory.mktemp("library"), transformers)
    with pytest.raises(EdgeError, match=said) as failed:
        tokenized_examples(questions, tiny_llama, causal_spec(), LENGTH)
    assert type(failed.value) is kind
    assert "\n" not in str(failed.value)
    assert "secret" not in str(failed.value)
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")


def test_process_that_hangs_is_ended(questions, tiny_llama, tmp_path_factory, monkeypatch):
    install(monkeypatch, tmp_path_factory.mktemp("library"), "import time; time.sleep(60)")
    monkeypatch.setattr(token_file, "_START_S", 1.0)
    with pytest.raises(DeviceError, match="more than 1 s"):
        tokenized_examples(questions, tiny_llama, causal_spec(), LENGTH)


def test_what_libraries_print_is_not_taken_for_tokens(
    questions, tiny_llama, tmp_path_factory, monkeypatch, capfd
):
    folder = tmp_path_factory.mktemp("library")
    real = (
        "import sys\n"
        "print('a banner', flush=True)\n"
        f"sys.path.remove({str(folder)!r})\n"
        "del sys.modules['transformers']\n"
        "import transformers\n"
    )
    install(monkeypatch, folder, real)
    found = tokenized_examples(questions, tiny_llama, causal_spec(), LENGTH)
    assert found == here(questions, tiny_llama, causal_spec())
    assert capfd.readouterr() == ("", "")


def test_interpreter_that_cannot_be_started_is_a_device_error(questions, tiny_llama, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DeviceError, match=r"cannot be started .*/nowhere/python"):
        tokenized_examples(questions, tiny_llama, causal_spec(), LENGTH)


@pytest.mark.parametrize(
    ("executable", "is_frozen"), [("", False), (None, False), ("/nowhere/application", True)]
)
def test_frozen_application_tokenizes_itself(
    questions, tiny_llama, monkeypatch, executable, is_frozen
):
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "frozen", is_frozen, raising=False)
    found = tokenized_examples(questions, tiny_llama, causal_spec(), LENGTH)
    assert found == here(questions, tiny_llama, causal_spec())


def examples() -> st.SearchStrategy[Example]:
    token = st.tuples(st.integers(0, 2**31 - 1), st.booleans())
    return st.builds(
        lambda pairs, label: Example(*zip(*pairs, strict=True), label),
        st.lists(token, min_size=1, max_size=20),
        st.none() | st.integers(0, 2**31 - 1),
    )


@given(st.lists(examples(), min_size=1, max_size=12))
def test_examples_survive_the_way_between_the_processes(sent):
    received = token_file._decode(token_file._encode(sent), max_length=20)
    assert received == sent
    assert all(type(example.label) in (int, type(None)) for example in received)
    assert all(example.tokens.flags.writeable for example in received), "torch warns otherwise"


@given(st.integers(0, len(token_file._encode(EXAMPLES)) - 1))
def test_cut_reply_is_refused_wherever_it_was_cut(size):
    with pytest.raises(DeviceError, match="arrived"):
        token_file._decode(token_file._encode(EXAMPLES)[:size], LENGTH)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ids": np.arange(11, dtype=np.int32)},
        {"lengths": np.array([3, 8], dtype=np.int32)},
        {"lengths": np.array([0, 12], dtype=np.int32)},
        {"lengths": np.array([-1, 13], dtype=np.int32)},
        {"is_learned": np.zeros(1, dtype=np.uint8)},
        {"labels": np.zeros(1, dtype=np.int32)},
        {"labels": np.zeros((2, 1), dtype=np.int32)},
        {"ids": np.arange(12, dtype=np.int64)},
        {"more": np.zeros(1, dtype=np.int32)},
        {
            "ids": np.zeros(0, dtype=np.int32),
            "lengths": np.zeros(0, dtype=np.int32),
            "is_learned": np.zeros(0, dtype=np.uint8),
            "labels": np.zeros(0, dtype=np.int32),
        },
    ],
    ids=str,
)
def test_reply_whose_sizes_disagree_is_refused(wrong):
    arrays = safetensors.numpy.load(token_file._encode(EXAMPLES))
    with pytest.raises(DeviceError, match="arrived"):
        token_file._decode(safetensors.numpy.save({**arrays, **wrong}), LENGTH)


def test_reply_with_an_example_longer_than_allowed_is_refused():
    said = token_file._encode(EXAMPLES)
    assert token_file._decode(said, max_length=9) == EXAMPLES
    with pytest.raises(DeviceError, match="1 to 8 tokens"):
        token_file._decode(said, max_length=8)


@pytest.mark.parametrize("said", [b"", b"[]", b"{}", json.dumps({"code": "x", "message": ""})])
def test_refusal_without_a_known_error_is_a_device_error(said):
    assert type(token_file._error_of(said)) is DeviceError
