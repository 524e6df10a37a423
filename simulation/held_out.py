"""How good a model is on what no device trains on: questions with choices, or examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from edge_sdk.errors import DataError
from simulation.work import Evaluation

if TYPE_CHECKING:
    from edge_sdk.model.scores import Score


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


class _Line(msgspec.Struct, frozen=True):
    """One line of ``choices.jsonl``; ``gold`` is the index of the right choice."""

    prompt: str
    choices: Annotated[list[str], msgspec.Meta(min_length=2)]
    gold: Annotated[int, msgspec.Meta(ge=0)]

    def __post_init__(self) -> None:
        if self.gold >= len(self.choices):
            raise ValueError(f"gold={self.gold} is none of {len(self.choices)} choices, from 0")


def read_questions(path: Path) -> tuple[list[dict[str, str]], list[Question]]:
    """Return a prompt with each of its choices, and the questions that they belong to.

    Raises:
        DataError: Says the file, the line and what is wrong there.
    """
    texts, questions = list[dict[str, str]](), list[Question]()
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            line = msgspec.json.decode(text, type=_Line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(f"{path}:{number}: {error}") from error
        questions.append(Question(len(texts), len(line.choices), line.gold))
        texts += [{"prompt": line.prompt, "completion": x} for x in line.choices]
    if not questions:
        raise DataError(f"{path} holds no question: write one JSON object per line")
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
