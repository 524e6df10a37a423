"""One round's ranks on a lean base: gradients of a step, and the values at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from edge_sdk.lean.llama import Llama
from edge_sdk.lean.packing import micro_batches, pack
from edge_sdk.lean.ranks import Ranks
from edge_sdk.model.scores import Score
from edge_sdk.sketch import Factors
from edge_sdk.text.example import Example
from edge_sdk.wire.payload import Arrays


class LeanTrainee:
    """The ranks one device trains in one round.

    Args:
        llama: Passes over the frozen model.
        ranks: What is trained.
        capacity: Tokens computed at once, at most; None computes a step at once.
        recomputed_blocks: Blocks that keep their input alone.
    """

    def __init__(
        self, llama: Llama, ranks: Ranks, capacity: int | None, recomputed_blocks: int
    ) -> None:
        self._llama = llama
        self._ranks = ranks
        self._capacity = capacity
        self._recomputed_blocks = recomputed_blocks

    def parameters(self, factors: Factors = "AB") -> list[nn.Parameter]:
        """Return what is trained when these factors are."""
        return self._ranks.parameters(factors)

    def gradients(self, examples: Sequence[Example]) -> float:
        """Set the gradients to those of the mean loss over everything learned; return it."""
        self._ranks.zero_gradients()
        capacity = self._capacity or sum(len(example.tokens) for example in examples)
        batches = micro_batches(examples, capacity)
        share = 1 / sum(len(batch.targets) for batch in batches)
        return sum(
            self._llama.add_gradients(batch, self._ranks, share, self._recomputed_blocks)
            for batch in batches
        )

    def arrays(self) -> Arrays:
        """Return copies of all values, trained or not, under the names the wire uses."""
        return self._ranks.arrays()

    def pull(self, towards: Arrays, share: float) -> None:
        """Move every trained value a share of the way to another; names are those of the wire."""
        self._ranks.pull(towards, share)

    def scores(self, examples: Iterable[Example]) -> Iterator[Score]:
        """Yield how well the model with these ranks predicts each example; no gradients."""
        for example in examples:
            batch = pack([example])
            yield Score(self._llama.loss(batch, self._ranks) / len(batch.targets))

    def detach(self) -> None:
        """Nothing was put on the base, so there is nothing to take off."""
