"""Frozen matrices in the number formats a base is held in, and how to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edge_sdk.lean.integer_products import IntegerWeight
from edge_sdk.lean.nf4 import decode_nf4
from edge_sdk.lean.row_operations import NF4_BLOCK


class FrozenMatrix(Protocol):
    """A weight ``(d_out, d_in)`` that nothing changes."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""

    @property
    def held_bytes(self) -> int:
        """Bytes of all its tensors."""

    def widen(self, out: Tensor, start: int = 0) -> Tensor:
        """Write the rows from ``start`` into ``out`` ``(rows, d_in)``, in its format; return it."""

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """Return chosen rows ``(n, d_in)``, as an embedding looks them up."""

    def as_integers(self) -> IntegerWeight:
        """Return how it is read as 8-bit integers with one scale per row; reads all of it once."""


@dataclass(frozen=True, slots=True)
class PlainMatrix:
    """A matrix in a floating-point format, bf16 or fp32.

    Attributes:
        values: ``(d_out, d_in)``.
    """

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def held_bytes(self) -> int:
        """Bytes of all its tensors."""
        return self.values.nbytes

    def widen(self, out: Tensor, start: int = 0) -> Tensor:
        """Write the rows from ``start`` into ``out``, in its format; return it."""
        return out.copy_(self.values[start : start + len(out)])

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """Return chosen rows ``(n, d_in)``."""
        return self.values[indices].to(dtype)

    def as_integers(self) -> IntegerWeight:
        """Return how it is read as 8-bit integers with one scale per row."""
        low, high = self.values.amin(dim=1), self.values.amax(dim=1)
        largest = torch.maximum(-low, high).float()
        return IntegerWeight(self.values, _scale(largest), None, *self.shape)


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """A matrix of 8-bit integers with one scale per row.

    Attributes:
        values: ``(d_out, d_in)`` int8.
        scale: ``(d_out,)`` fp32: a weight is its integer times the scale of its row.
    """

    values: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def held_bytes(self) -> int:
        """Bytes of all its tensors."""
        return self.values.nbytes + self.scale.nbytes

    def widen(self, out: Tensor, start: int = 0) -> Tensor:
        """Write the rows from ``start`` into ``out``, in its format; return it."""
        stop = start + len(out)
        return out.copy_(self.values[start:stop]).mul_(self.scale[start:stop, None])

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """Return chosen rows ``(n, d_in)``."""
        return self.values[indices].to(dtype) * self.scale[indices, None].to(dtype)

    def as_integers(self) -> IntegerWeight:
        """Return how it is read as 8-bit integers with one scale per row."""
        return IntegerWeight(self.values, self.scale, None, *self.shape)


@dataclass(frozen=True, slots=True)
class Nf4Matrix:
    """A matrix in bitsandbytes' NF4 with double quantization.

    Attributes:
        packed: ``(d_out * d_in / 2,)`` uint8: two codes each, the earlier one in the high bits.
        absmax: ``(blocks,)`` fp32: the largest magnitude of each 64 consecutive weights.
        d_out: Rows.
        d_in: Columns.
    """

    packed: Tensor
    absmax: Tensor
    d_out: int
    d_in: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        return self.d_out, self.d_in

    @property
    def held_bytes(self) -> int:
        """Bytes of all its tensors."""
        return self.packed.nbytes + self.absmax.nbytes

    def widen(self, out: Tensor, start: int = 0) -> Tensor:
        """Write the rows from ``start`` into ``out``, in its format; return it."""
        return decode_nf4(self.packed, self.absmax, out, start * self.d_in)

    def rows(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """Return chosen rows ``(n, d_in)``."""
        out = torch.empty(len(indices), self.d_in, dtype=dtype)
        for row, index in zip(out, indices.tolist(), strict=True):
            self.widen(row[None], index)
        return out

    def as_integers(self) -> IntegerWeight:
        """Return how it is read as 8-bit integers with one scale per row."""
        if self.d_in % NF4_BLOCK == 0:
            largest = self.absmax.view(self.d_out, -1).amax(dim=1)
        else:  # a block reaches over the end of a row
            largest = self.widen(torch.empty(self.shape)).abs().amax(dim=1)
        return IntegerWeight(self.packed, _scale(largest), self.absmax, *self.shape)


def _scale(largest: Tensor) -> Tensor:
    """Return the scale with which the largest weight of a row becomes 127."""
    return torch.where(largest == 0, 1.0, largest / 127)
