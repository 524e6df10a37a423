"""Round matrices to 4 or 8 bits in blocks, in the layout ONNX Runtime's MatMulNBits multiplies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Bits = Literal[4, 8]

BLOCK = 32
"""Columns that share one scale."""

_SHRINKS: dict[Bits, tuple[float, ...]] = {4: (0.96, 0.92, 0.88, 0.84, 0.8), 8: ()}


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows of a matrix, ``w = scale * (q - zero)`` with ``zero = 2 ** (bits - 1)``.

    Attributes:
        codes: ``(rows, blocks, BLOCK * bits / 8)``; the first of two 4-bit codes is the low one.
        scales: ``(rows, blocks)``.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]


def block_shapes(rows: int, columns: int, bits: Bits) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of codes and scales of a matrix."""
    blocks = -(-columns // BLOCK)
    return (rows, blocks, BLOCK * bits // 8), (rows, blocks)


def round_to_blocks(matrix: NDArray[Any], bits: Bits) -> Blocks:
    """Round a matrix, each block with the scale that leaves the smallest squared error.

    The number of largest magnitude decides the scale's sign, so that it meets the one code that
    has no opposite. A scale a little smaller than needed for it often serves the others better.

    Args:
        matrix: ``(rows, columns)`` of any floating-point format.
        bits: Of one code.
    """
    blocks = _in_blocks(matrix)
    zero = 1 << (bits - 1)
    places = np.abs(blocks).argmax(axis=2)[..., None]
    extremes = np.take_along_axis(blocks, places, axis=2)[..., 0] / np.float32(-zero)
    scales, codes = extremes, _codes(blocks, extremes, zero)
    least = _squared_error(blocks, codes, scales, zero)
    for shrink in _SHRINKS[bits]:
        tried = extremes * np.float32(shrink)
        found = _codes(blocks, tried, zero)
        error = _squared_error(blocks, found, tried, zero)
        is_better = error < least
        least = np.where(is_better, error, least)
        scales = np.where(is_better, tried, scales)
        codes = np.where(is_better[..., None], found, codes)
    return Blocks(_packed(codes, bits), scales)


def widen(blocks: Blocks, columns: int, bits: Bits) -> NDArray[np.float32]:
    """Return the matrix that blocks stand for."""
    codes = blocks.codes
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], BLOCK)
    wide = (codes.astype(np.float32) - (1 << (bits - 1))) * blocks.scales[..., None]
    return wide.reshape(len(wide), -1)[:, :columns]


def _in_blocks(matrix: NDArray[Any]) -> NDArray[np.float32]:
    rows, columns = matrix.shape
    padded = np.zeros((rows, -(-columns // BLOCK) * BLOCK), np.float32)
    padded[:, :columns] = matrix
    return padded.reshape(rows, -1, BLOCK)


def _codes(
    blocks: NDArray[np.float32], scales: NDArray[np.float32], zero: int
) -> NDArray[np.uint8]:
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.rint(blocks * inverse[..., None]) + zero
    return np.asarray(np.clip(codes, 0, 2 * zero - 1).astype(np.uint8))


def _packed(codes: NDArray[np.uint8], bits: Bits) -> NDArray[np.uint8]:
    if bits == 8:
        return codes
    return np.asarray(codes[..., ::2] | (codes[..., 1::2] << 4), np.uint8)


def _squared_error(
    blocks: NDArray[np.float32], codes: NDArray[np.uint8], scales: NDArray[np.float32], zero: int
) -> NDArray[np.float32]:
    difference = (codes.astype(np.float32) - zero) * scales[..., None] - blocks
    return np.asarray(np.einsum("rbc,rbc->rb", difference, difference))
