"""Say which updates are too large to be counted, and why.

The norm of an update is the root mean square of its numbers, so it does not grow with k.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AggregationSpec

_FEWEST = 3


def update_norm(arrays: Arrays) -> float:
    """Return the root mean square of all numbers of an update, in float64."""
    total = sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays.values())
    return math.sqrt(total / sum(array.size for array in arrays.values()))


def why_too_large(norm: float, spec: AggregationSpec) -> str | None:
    """Say why one update is too large by itself, in at most 200 characters, or nothing."""
    if spec.max_norm is None or norm <= spec.max_norm:
        return None
    return f"root mean square {norm:.3g} of its numbers, above max_norm={spec.max_norm:.3g}"


def outliers(norms: Sequence[float], spec: AggregationSpec) -> list[str | None]:
    """Say which updates of a round are too large beside the others.

    Nothing is said of fewer than 3 updates, of which none is the odd one out, nor if the median
    is 0, since any other update is infinitely many times that.

    Args:
        norms: Of all updates of the round that may count.
        spec: How the task screens.

    Returns:
        For each norm, in at most 200 characters, why it is an outlier, or None.
    """
    if spec.max_norm_ratio is None or len(norms) < _FEWEST:
        return [None] * len(norms)
    median = statistics.median(norms)
    limit = spec.max_norm_ratio * median
    return [
        f"root mean square {norm:.3g} of its numbers, above {spec.max_norm_ratio:.3g} times the "
        f"median {median:.3g} of the {len(norms)} updates of its round"
        if 0 < limit < norm
        else None
        for norm in norms
    ]
