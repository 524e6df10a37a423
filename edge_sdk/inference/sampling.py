"""Choose the next token from logits: the most probable one, or a draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 always takes the most probable token; 1 draws as the model says.
        top_p: Draw from the most probable tokens that together reach this probability.
        seed: Of the draws; None draws differently each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"temperature={self.temperature} must be in 0..100")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1")


class Sampler:
    """Chooses the tokens of one text."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Return the next token for ``(vocab_size,)`` logits."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = np.exp(log_softmax(logits / self._sampling.temperature))
        order = np.argsort(-probabilities)
        cumulative = np.cumsum(probabilities[order])
        kept = int(np.searchsorted(cumulative, self._sampling.top_p * cumulative[-1])) + 1
        draw = self._rng.random() * cumulative[min(kept, len(order)) - 1]
        return int(order[min(int(np.searchsorted(cumulative, draw)), len(order) - 1)])


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the logarithm of probabilities."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    return np.asarray(wide - np.log(np.exp(wide).sum()))
