"""Which ranks were trained, and for how long others were not."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from simulation.work import Work


class Coverage:
    """Counts the rounds since each rank of each layer was last part of a mean.

    Args:
        layers: Of the adapter.
        r: Global rank.
    """

    def __init__(self, layers: int, r: int) -> None:
        self.ages = np.zeros((layers, r), np.int64)

    def count(self, works: Iterable[Work]) -> tuple[float, int]:
        """Take a round in; return the share of ranks it trained, and the age of the oldest."""
        self.ages += 1
        for work in works:
            for row, indices in zip(self.ages, work.indices, strict=True):
                row[indices] = 0
        return float((self.ages == 0).mean()), int(self.ages.max())
