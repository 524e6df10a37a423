"""How good a model is on what no device trains on: questions with choices, or examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simulation.work import Evaluation

if TYPE_CHECKING:
    from edge_sdk.scores import Score


@dataclass(frozen=True, slots=True)
class Question:
    """One question among the scores of all its choices.

    Attributes:
        first: Index of its first choice.
        choices: How many it has.
        gold: Which of them is right, from 0.
    """

    first: int
    choices: int
    gold: int


def read_questions(path: Path) -> tuple[list[dict[str, str]], list[Question]]:
    """Return a prompt with each of its choices, and the questions that they belong to."""
    texts, questions = list[dict[str, str]](), list[Question]()
    for line in map(json.loads, path.read_text("utf-8").splitlines()):
        questions.append(Question(len(texts), len(line["choices"]), line["gold"]))
        texts += [{"prompt": line["prompt"], "completion": x} for x in line["choices"]]
    return texts, questions


def answered(scores: Sequence[Score], questions: Sequence[Question]) -> Evaluation:
    """Return the mean loss of the right choices, and how often it is the least of its question."""
    losses = [x.loss for x in scores]
    hits, right = 0, list[float]()
    for question in questions:
        own = losses[question.first : question.first + question.choices]
        hits += int(np.argmin(own)) == question.gold
        right.append(own[question.gold])
    return Evaluation(loss=float(np.mean(right)), accuracy=hits / len(questions))


def predicted(scores: Sequence[Score]) -> Evaluation:
    """Return the mean loss, and the share of right classes where there are classes."""
    right = [x.is_right for x in scores if x.is_right is not None]
    return Evaluation(
        loss=float(np.mean([x.loss for x in scores])),
        accuracy=sum(right) / len(right) if right else None,
    )
