"""Round matrices to 8 bits in blocks, in the layout ONNX Runtime's MatMulNBits multiplies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
"""Columns that share one scale."""

_ZERO = 128


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows of a matrix, ``w = scale * (q - 128)``.

    Attributes:
        codes: ``(rows, blocks, BLOCK)``.
        scales: ``(rows, blocks)``.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]


def block_shapes(rows: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of codes and scales of a matrix."""
    blocks = -(-columns // BLOCK)
    return (rows, blocks, BLOCK), (rows, blocks)


def round_to_blocks(matrix: NDArray[Any]) -> Blocks:
    """Round a matrix.

    The number of largest magnitude decides a scale's sign, so that it meets the one code that has
    no opposite.

    Args:
        matrix: ``(rows, columns)`` of any floating-point format.
    """
    blocks = _in_blocks(matrix)
    places = np.abs(blocks).argmax(axis=2)[..., None]
    scales = np.take_along_axis(blocks, places, axis=2)[..., 0] / np.float32(-_ZERO)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.rint(blocks * inverse[..., None]) + _ZERO
    return Blocks(np.clip(codes, 0, 2 * _ZERO - 1).astype(np.uint8), scales)


def widen(blocks: Blocks, columns: int) -> NDArray[np.float32]:
    """Return the matrix that blocks stand for."""
    wide = (blocks.codes.astype(np.float32) - _ZERO) * blocks.scales[..., None]
    return wide.reshape(len(wide), -1)[:, :columns]


def _in_blocks(matrix: NDArray[Any]) -> NDArray[np.float32]:
    rows, columns = matrix.shape
    padded = np.zeros((rows, -(-columns // BLOCK) * BLOCK), np.float32)
    padded[:, :columns] = matrix
    return padded.reshape(rows, -1, BLOCK)
