"""Rows of numbers as codes of 16, 8 or 4 bits with one scale for every 64 numbers of a row.

A block is up to 64 numbers of one row, never of two, and its scale is the largest of them over
the largest code, as bf16, rounded up. int8 and int4 codes are ``-127..127`` and ``-7..7``, rounded
up or down at random with the chances that make the code right on average; float16 codes are
fractions of the scale, rounded to the nearest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import NotFinite

BLOCK = 64
"""Numbers that share a scale."""

CodeName = Literal["float16", "int8", "int4"]

SCALE = np.dtype(ml_dtypes.bfloat16)
"""Number format of a scale: the range of float32 in two bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """How numbers become codes.

    Attributes:
        dtype: Of the array of codes; two int4 codes are in one ``uint8``.
        format: The same as safetensors calls it.
        largest: Code of the largest number of a block.
    """

    dtype: np.dtype[Any]
    format: str
    largest: float


CODES: dict[CodeName, Code] = {
    "float16": Code(dtype=np.dtype("<f2"), format="F16", largest=1.0),
    "int8": Code(dtype=np.dtype("i1"), format="I8", largest=127.0),
    "int4": Code(dtype=np.dtype("u1"), format="U8", largest=7.0),
}


def code_count(shape: tuple[int, int], name: CodeName) -> int:
    """Return the length of the array of codes of ``(rows, width)`` numbers."""
    numbers = math.prod(shape)
    return -(-numbers // 2) if name == "int4" else numbers


def scale_count(shape: tuple[int, int]) -> int:
    """Return the scales of ``(rows, width)`` numbers."""
    rows, width = shape
    return rows * -(-width // BLOCK)


def encoded_bytes(shape: tuple[int, int], name: CodeName) -> int:
    """Return the bytes of codes and scales of ``(rows, width)`` numbers."""
    codes = code_count(shape, name) * CODES[name].dtype.itemsize
    return int(codes + scale_count(shape) * SCALE.itemsize)


def encode_rows(
    rows: NDArray[np.float32], name: CodeName, source: np.random.PCG64
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Turn ``(rows, width)`` numbers into codes and scales.

    Args:
        rows: The numbers.
        name: Of the code.
        source: Decides what is rounded up; not used for float16.

    Returns:
        ``(code_count,)`` codes and ``(scale_count,)`` scales.

    Raises:
        NotFinite: NaN, infinity, or a number beyond what a scale can be.
    """
    count, width = rows.shape
    padded_width = -(-width // BLOCK) * BLOCK
    blocks = np.zeros((count, padded_width), np.float32)
    blocks[:, :width] = rows
    blocks = blocks.reshape(-1, BLOCK)
    scales = _scales(blocks, CODES[name].largest)
    divisors = scales.astype(np.float32)
    divisors[divisors == 0] = 1.0
    blocks /= divisors[:, None]
    if name != "float16":
        blocks += _chances(blocks.shape, source)
        np.floor(blocks, out=blocks)
        largest = CODES[name].largest
        np.clip(blocks, -largest, largest, out=blocks)
    fractions = blocks.reshape(count, padded_width)[:, :width].ravel()
    if name == "int4":
        return _packed(fractions), scales
    return fractions.astype(CODES[name].dtype), scales


def decode_rows(
    codes: NDArray[Any], scales: NDArray[Any], shape: tuple[int, int], name: CodeName
) -> NDArray[np.float32]:
    """Return the ``(rows, width)`` numbers that codes and scales stand for.

    Codes and scales that nobody should have made may give NaN or infinity.
    """
    rows, width = shape
    if name == "int4":
        codes = _unpacked(codes)[: rows * width]
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.repeat(scales.astype(np.float32).reshape(rows, -1), BLOCK, axis=1)
        numbers: NDArray[np.float32] = wide[:, :width] * codes.reshape(shape)
        return numbers.astype(np.float32, copy=False)


def _scales(blocks: NDArray[np.float32], largest_code: float) -> NDArray[Any]:
    """Return a scale for each ``(blocks, 64)``, rounded up so that no code is beyond the largest.

    A block whose largest number is below the normal numbers of float32 gets 0: it is lost.
    """
    largest = np.abs(blocks).max(axis=1)
    if not np.isfinite(largest).all():
        raise NotFinite("NaN or infinity has no code")
    wanted = largest / np.float32(largest_code)
    wanted[wanted < np.finfo(np.float32).tiny] = 0.0
    scales: NDArray[Any] = (
        ((wanted.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype(np.uint16).view(SCALE)
    )
    if not np.isfinite(scales.astype(np.float32)).all():
        raise NotFinite(f"{largest.max():.2e} is beyond what a scale can be")
    return scales


def _chances(shape: tuple[int, ...], source: np.random.PCG64) -> NDArray[np.float32]:
    """Return random numbers between 0 and 1, of 16 bits each, from the raw stream alone."""
    count = math.prod(shape)
    raw = np.asarray(source.random_raw(-(-count // 4))).astype("<u8").view("<u2")[:count]
    chances: NDArray[np.float32] = raw.astype(np.float32)
    chances += np.float32(0.5)
    chances /= np.float32(65536)
    return chances.reshape(shape)


def _packed(codes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return two codes in each byte, the first one in its lower half."""
    nibbles = np.full(len(codes) + len(codes) % 2, 8, np.uint8)
    nibbles[: len(codes)] = codes + 8
    packed: NDArray[np.uint8] = np.bitwise_or(nibbles[0::2], nibbles[1::2] << 4)
    return packed


def _unpacked(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Return the codes of :func:`_packed`, and one more if their number was odd."""
    codes = np.empty((len(packed), 2), np.int8)
    codes[:, 0] = packed & 15
    codes[:, 1] = packed >> 4
    codes -= 8
    return codes.ravel()
