"""Low-rank products folded into the frozen weights of a base."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from server.methods.method import BaseChange, narrowed

Stack = tuple[NDArray[np.float64], NDArray[np.float64]]
"""``(d_out, n)`` and ``(n, d_in)``, all scales within."""


def folded_in(before: BaseChange, stacks: Mapping[str, Stack]) -> BaseChange:
    """Return the change of every layer with a product added to it."""
    return {
        name: narrowed(before.get(name, np.float32(0.0)) + left @ right)
        for name, (left, right) in stacks.items()
    }
