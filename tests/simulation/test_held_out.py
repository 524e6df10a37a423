"""Losses and accuracies of held-out questions and examples."""

from __future__ import annotations

import pytest

from edge_sdk.errors import DataError
from edge_sdk.model.scores import Score
from simulation.held_out import answered, predicted, read_questions
from tests.tiny_model import write_jsonl


def test_questions_are_scored_by_their_right_choice_and_won_by_the_least_loss(tmp_path):
    path = tmp_path / "choices.jsonl"
    write_jsonl(
        path,
        [
            {"prompt": "a?", "choices": [" one", " two"], "gold": 1},
            {"prompt": "b?", "choices": [" one", " two", " red"], "gold": 0},
        ],
    )
    texts, questions = read_questions(path)
    assert [x["completion"] for x in texts] == [" one", " two", " one", " two", " red"]
    assert texts[2]["prompt"] == "b?"
    losses = [3.0, 1.0, 2.0, 0.5, 4.0]
    found = answered([Score(x, None) for x in losses], questions)
    assert found.loss == pytest.approx((1.0 + 2.0) / 2)
    assert found.accuracy == 0.5


def test_examples_with_classes_have_an_accuracy_and_texts_have_none():
    assert predicted([Score(1.0, True), Score(3.0, False)]).accuracy == 0.5
    texts = predicted([Score(1.0, None), Score(3.0, None)])
    assert (texts.loss, texts.accuracy) == (2.0, None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "holds no question"),
        ("not JSON", "choices.jsonl:1: JSON is malformed"),
        ('{"prompt": "a", "choices": ["b", "c"]}', "choices.jsonl:1: .* `gold`"),
        ('{"prompt": "a", "choices": ["b"], "gold": 0}', "length >= 2"),
        ('{"prompt": "a", "choices": ["b", "c"], "gold": 2}', "gold=2 is none of 2 choices"),
        ('{"prompt": "a", "choices": ["b", "c"], "gold": -1}', ">= 0"),
    ],
)
def test_a_wrong_line_of_choices_is_said(tmp_path, line, reason):
    path = tmp_path / "choices.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=reason):
        read_questions(path)
