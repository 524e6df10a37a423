"""How probable each of several continuations of one text is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import DataError
from edge_sdk.inference.past import Past
from edge_sdk.inference.sampling import log_softmax
from edge_sdk.text.tokenization import Part, Tokens, start_ids, tokenize


def split_choices(tokenizer: Any, text: str, choices: Sequence[str]) -> list[Tokens]:
    """Return the tokens of a text with each choice after it; those of the choice are learned.

    Raises:
        DataError: The text or a choice has no token.
    """
    start = start_ids(tokenizer)
    texts = [
        tokenize(tokenizer, [Part(text, False), Part(choice, True)], start) for choice in choices
    ]
    if any(not any(x.is_learned) or x.is_learned[0] for x in texts):
        raise DataError("the text or a choice has no token; both need at least one")
    return texts


def score_choices(past: Past, texts: Sequence[Tokens]) -> NDArray[np.float64]:
    """Return the summed log-probability of each choice; the text before them is passed once.

    Args:
        past: Empty, with room for the longest text.
        texts: Of :func:`split_choices`.
    """
    shared: list[int] = []
    first = np.empty(0)
    scores = list[float]()
    for text in texts:
        boundary = text.is_learned.index(True)
        if text.ids[:boundary] != shared:
            shared = text.ids[:boundary]
            past.rewind(0)
            first = log_softmax(past.extend(shared))
        past.rewind(boundary)
        scores.append(_score(past, first, text.ids[boundary:]))
    return np.array(scores)


def _score(past: Past, first: NDArray[np.float64], ids: Sequence[int]) -> float:
    score = float(first[ids[0]])
    for before, token in pairwise(ids):
        score += float(log_softmax(past.extend([before]))[token])
    return score
