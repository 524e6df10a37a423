"""One training example, as compact as its tokens: a device may hold many thousands."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Example:
    """One training example.

    Attributes:
        tokens: ``(t,)`` token ids.
        is_learned: ``(t,)``, for each token whether the loss counts it; all False for a
            classifier.
        label: Class of the text, for a classifier.

    Args:
        tokens: Kept as they are if they are int32, else copied.
        is_learned: Kept as they are if they are an array of bool, else copied.
        label: None for a causal LM.
    """

    __slots__ = ("is_learned", "label", "tokens")

    def __init__(self, tokens: ArrayLike, is_learned: ArrayLike, label: int | None = None) -> None:
        self.tokens: NDArray[np.int32] = np.asarray(tokens, dtype=np.int32)
        self.is_learned: NDArray[np.bool_] = np.asarray(is_learned, dtype=np.bool_)
        self.label = label

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Example):
            return NotImplemented
        return (
            self.label == other.label
            and np.array_equal(self.tokens, other.tokens)
            and np.array_equal(self.is_learned, other.is_learned)
        )

    def __repr__(self) -> str:
        return f"Example({self.tokens.tolist()}, {self.is_learned.tolist()}, {self.label})"
