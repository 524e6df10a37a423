"""The commonsense questions: each once, with the text of its right answer."""

from __future__ import annotations

import json

import pytest

from demo.assets import cached_path
from demo.commonsense import REQUESTS, Question, parse, questions, record
from edge_sdk.errors import DataError
from tests.demo.real_assets import use_real_cache


def _line(doc_id: int, gold: int = 1, **more: object) -> str:
    doc = {"query": f"Question: {doc_id} ?\nAnswer:", "choices": ["ice", " fire"], "gold": gold}
    return json.dumps({"doc_id": doc_id, "doc": {**doc, **more}, "request": {"context": "shots"}})


def test_question_is_read_once_however_many_of_its_choices_and_repeats_are_there():
    lines = [_line(0), _line(0), _line(7, gold=0), _line(1_000_000), _line(1_000_007)]

    assert parse("\n".join(lines).encode()) == [
        Question("Question: 0 ?\nAnswer:", " fire"),
        Question("Question: 7 ?\nAnswer:", " ice"),
    ]


@pytest.mark.parametrize(
    "line",
    ["{", "{}", _line(1, gold=2), _line(1, gold=-1), _line(1, query=3), _line(1, choices=[])],
)
def test_line_of_another_form_is_refused_with_its_number(line: str):
    with pytest.raises(DataError, match="line 2 "):
        parse(f"{_line(0)}\n{line}\n".encode())


def test_record_is_a_prompt_and_its_completion():
    assert record(Question("Question: a ?\nAnswer:", " b")) == {
        "prompt": "Question: a ?\nAnswer:",
        "completion": " b",
    }


def test_published_file_holds_2251_questions(monkeypatch: pytest.MonkeyPatch):
    use_real_cache(monkeypatch)
    if not cached_path(REQUESTS).is_file():
        pytest.skip("the questions are not in the demo's cache: fetch them once")
    found = questions()

    assert len(found) == len({question.prompt + question.completion for question in found}) == 2251
    assert found[0].completion == " a bacterial population in the bloodstream"
    assert all(question.prompt.endswith("\nAnswer:") for question in found)
