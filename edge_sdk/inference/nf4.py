"""Round matrices to the 16 values of NF4, as a base is while adapters are trained on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.model.nf4_code import NF4_CODE

BLOCK = 64
"""Numbers, row after row, that share one scale."""

_VALUES = np.array(NF4_CODE, np.float32)
_EDGES = (_VALUES[1:] + _VALUES[:-1]) / 2


def code_nf4(matrix: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return NF4's codes of a matrix, and the largest magnitude of each block.

    Scales stay in fp32; that training rounds them to 8 bits changes a weight by far less.

    Args:
        matrix: ``(rows, columns)`` of any floating-point format, whole rows of the layer.

    Returns:
        ``(blocks, BLOCK)`` codes, the last block filled up, and ``(blocks,)``.
    """
    numbers = np.asarray(matrix, np.float32).reshape(-1)
    padded = np.zeros(-(-len(numbers) // BLOCK) * BLOCK, np.float32)
    padded[: len(numbers)] = numbers
    blocks = padded.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1)
    wide = scales[:, None]
    relative = np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide != 0)
    return np.searchsorted(_EDGES, relative).astype(np.uint8), scales


def round_to_nf4(matrix: NDArray[Any]) -> NDArray[np.float32]:
    """Return a matrix of NF4's values times the largest magnitude of their block."""
    codes, scales = code_nf4(matrix)
    rounded = _VALUES[codes] * scales[:, None]
    return np.asarray(rounded.reshape(-1)[: matrix.size].reshape(matrix.shape))


def pack_nf4(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two codes into a byte, the first one high, as ONNX Runtime's MatMulBnb4 takes them."""
    pairs = codes.reshape(-1, 2)
    return np.asarray(pairs[:, 0] << 4 | pairs[:, 1])
