"""Round matrices to the 16 values of NF4, as a base is while adapters are trained on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 64
"""Numbers, row after row, that share one scale."""

_VALUES = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
_EDGES = (_VALUES[1:] + _VALUES[:-1]) / 2


def round_to_nf4(matrix: NDArray[Any]) -> NDArray[np.float32]:
    """Return a matrix of NF4's values times the largest magnitude of their block.

    Scales stay in fp32; that training rounds them to 8 bits changes a weight by far less.

    Args:
        matrix: ``(rows, columns)`` of any floating-point format, whole rows of the layer.
    """
    numbers = np.asarray(matrix, np.float32).reshape(-1)
    padded = np.zeros(-(-len(numbers) // BLOCK) * BLOCK, np.float32)
    padded[: len(numbers)] = numbers
    blocks = padded.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True)
    relative = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales != 0)
    rounded = _VALUES[np.searchsorted(_EDGES, relative)] * scales
    return np.asarray(rounded.reshape(-1)[: len(numbers)].reshape(matrix.shape))
