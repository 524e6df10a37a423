"""How far the local steps of a round have come, and all that going on from there needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass
class Progress:
    """The state after some local steps; with the same seed, what follows is the same.

    Attributes:
        losses: Training loss of each step so far.
        step_s: Wall time of each, in seconds.
        longest: Tokens of the longest example so far.
        arrays: The trained values and the state of the optimizer, by a name of their own.
    """

    losses: list[float]
    step_s: list[float]
    longest: int
    arrays: dict[str, NDArray[Any]]

    @property
    def step(self) -> int:
        """The last step that was taken, from 1."""
        return len(self.losses)


class Steps(Protocol):
    """The local steps of a round while they are taken."""

    losses: list[float]
    step_s: list[float]

    def progress(self) -> Progress:
        """Return where they stand; the next step may change the arrays."""
