"""Mean and confidence interval of a few runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Student's t at 97.5 %, by degrees of freedom from 1; beyond the table its limit is near enough
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T_LIMIT = 2.0


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the half width of its 95 % interval; no width for a single value."""
    mean = float(np.mean(values))
    freedom = len(values) - 1
    if freedom < 1:
        return mean, None
    t = _T[freedom - 1] if freedom <= len(_T) else _T_LIMIT
    return mean, t * float(np.std(values, ddof=1)) / math.sqrt(len(values))
