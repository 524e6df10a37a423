"""How good a model is on held-out text: loss, choices among answers, classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sdk.errors import DataError
from edge_sdk.general.base_model import LoadedBase
from edge_sdk.general.predictions import predict
from edge_sdk.text.batches import collate
from edge_sdk.text.example import Example
from edge_sdk.text.tokenization import Part, Tokens, start_ids, tokenize

_Item = TypeVar("_Item")


def completion_loss(base: LoadedBase, examples: Sequence[Example], batch_size: int = 8) -> float:
    """Return the mean loss over every learned token (for a classifier: over the texts).

    Args:
        base: The model as it is now, adapter attached or not.
        examples: Held out from training.
        batch_size: Examples per forward pass; bounds memory, does not change the result.

    Raises:
        DataError: There is no example.
    """
    total, count = 0.0, 0
    for batch in _batches(examples, batch_size):
        with torch.inference_mode():
            predictions = predict(base, collate(batch, base.tokenizer.pad_token_id))
            total += float(predictions.summed_loss())
            count += predictions.count()
    return total / count


def classification_accuracy(
    base: LoadedBase, examples: Sequence[Example], batch_size: int = 8
) -> float:
    """Return the share of texts whose most probable class is their label.

    Raises:
        DataError: There is no example, or one has no label.
    """
    if any(example.label is None for example in examples):
        raise DataError("an example has no label: load them for a sequence classifier")
    hits = 0
    for batch in _batches(examples, batch_size):
        with torch.inference_mode():
            predictions = predict(base, collate(batch, base.tokenizer.pad_token_id))
            hits += int((predictions.logits.argmax(dim=-1) == predictions.targets).sum())
    return hits / len(examples)


def choice_accuracy(
    base: LoadedBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    choices: Sequence[str],
    batch_size: int = 8,
) -> float:
    """Return how often the right answer is the most probable continuation of its prompt.

    Args:
        base: A causal LM as it is now, adapter attached or not.
        prompts: One text per question.
        answers: For each prompt, the right one of ``choices``.
        choices: Continuations as they follow the prompt, a leading space included.
        batch_size: Sequences per forward pass.

    Raises:
        DataError: Lengths that differ, no prompt, an answer that is no choice, or a prompt or
            choice without a token.
    """
    if len(prompts) != len(answers):
        raise DataError(f"{len(prompts)} prompts but {len(answers)} answers")
    stray = sorted(set(answers) - set(choices))
    if stray:
        raise DataError(f"answer {stray[0]!r} is none of the choices {list(choices)}")
    scores = choice_scores(base, prompts, choices, batch_size)
    best = [choices[i] for i in scores.argmax(axis=1)]
    hits: list[bool] = [found == answer for found, answer in zip(best, answers, strict=True)]
    return sum(hits) / len(hits)


def choice_scores(
    base: LoadedBase, prompts: Sequence[str], choices: Sequence[str], batch_size: int = 8
) -> NDArray[np.float64]:
    """Return ``(prompts, choices)``: the summed log-probability of each continuation.

    Choices of one token each need one forward pass per prompt instead of one per choice.

    Raises:
        DataError: No prompt or choice, or one without a token.
    """
    if not choices:
        raise DataError("there is no choice to score")
    start = start_ids(base.tokenizer)
    sequences = [
        tokenize(base.tokenizer, [Part(prompt, False), Part(choice, True)], start)
        for prompt in prompts
        for choice in choices
    ]
    for tokens in sequences:
        if not any(tokens.is_learned) or tokens.is_learned[0]:
            raise DataError("a prompt or a choice has no token; both need at least one")
    if all(sum(tokens.is_learned) == 1 for tokens in sequences):
        scores = _score_last_tokens(base, sequences, len(choices), batch_size)
    else:
        scores = _score_sequences(base, sequences, batch_size)
    return np.array(scores, dtype=np.float64).reshape(len(prompts), len(choices))


def _score_sequences(base: LoadedBase, sequences: Sequence[Tokens], batch_size: int) -> list[float]:
    scores = list[float]()
    examples = [Example(tokens.ids, tokens.is_learned) for tokens in sequences]
    for batch in _batches(examples, batch_size):
        with torch.inference_mode():
            predictions = predict(base, collate(batch, base.tokenizer.pad_token_id))
            scores += predictions.log_probabilities().tolist()
    return scores


def _score_last_tokens(
    base: LoadedBase, sequences: Sequence[Tokens], choices: int, batch_size: int
) -> list[float]:
    """Score one-token choices: the distribution after a prompt holds all of them at once."""
    scores = list[float]()
    # The first choice stands in for all: only the place it is predicted at matters.
    firsts = [Example(x.ids, x.is_learned) for x in sequences[::choices]]
    last_ids = np.array([x.ids[-1] for x in sequences]).reshape(-1, choices)
    for batch, ids in zip(
        _batches(firsts, batch_size), _batches(last_ids.tolist(), batch_size), strict=True
    ):
        with torch.inference_mode():
            predictions = predict(base, collate(batch, base.tokenizer.pad_token_id))
            place = (predictions.targets >= 0).int().argmax(dim=1)
            rows = predictions.logits[torch.arange(len(batch)), place].float().log_softmax(dim=-1)
            scores += rows.gather(1, torch.tensor(ids, device=rows.device)).flatten().tolist()
    return scores


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    if not items:
        raise DataError("there is no example to evaluate on")
    for start in range(0, len(items), size):
        yield items[start : start + size]
