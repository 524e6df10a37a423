"""Products with frozen weights in 8-bit integers: activations rounded, weights read as held."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_sdk.lean import native
from edge_sdk.lean.native import PANEL, SMALL, Kernel

GROUP = 128
"""Numbers of a row of activations that share a scale."""
_HELD = {torch.int8: 0, torch.bfloat16: 2}
_HELD_NF4 = 1


@dataclass(frozen=True, slots=True)
class Integers:
    """Activations as 8-bit integers; ``GROUP`` numbers of a row share a scale.

    Attributes:
        values: ``(rows, d)`` int8 within -127..127.
        scale: ``(rows, groups)`` fp32; not finite where the numbers are not.
        excess: ``(rows, groups)`` int32: 128 times the sum of the integers.
    """

    values: Tensor
    scale: Tensor
    excess: Tensor


def quantize_rows(x: Tensor, columns: Tensor | None, out: Integers) -> None:
    """Write ``x``, or ``x * columns``, as integers.

    Args:
        x: ``(rows, d)``.
        columns: ``(d,)`` or None.
        out: Written.
    """
    kernels = native.taking(x, columns, out.values, out.scale, out.excess)
    if kernels is not None:
        tensors = (x, columns, out.values, out.scale, out.excess)
        kernels.run(Kernel.QUANTIZE_ROWS, len(x), tensors, (x.shape[1],), (), x.numel())
        return
    scaled = x if columns is None else x * columns
    for group, first in enumerate(range(0, x.shape[1], GROUP)):
        part = scaled[:, first : first + GROUP]
        largest = part.abs().amax(dim=1)
        scale = torch.where(largest == 0, 1.0, largest / 127)
        integers = torch.round(part / scale[:, None]).nan_to_num_(0.0)
        out.scale[:, group] = scale
        out.values[:, first : first + GROUP] = integers
        out.excess[:, group] = 128 * integers.sum(dim=1)


def add_product(product: Tensor, rows: Tensor, columns: Tensor | None, y: Tensor) -> None:
    """Add a product of integers to ``y``, scaled back.

    Args:
        product: ``(rows, d)`` int32.
        rows: ``(rows,)`` scales.
        columns: ``(d,)`` scales, or None.
        y: ``(rows, d)``, added to.
    """
    kernels = native.taking(product, rows, columns, y)
    if kernels is not None:
        tensors = (product, rows, columns, y)
        kernels.run(Kernel.ADD_PRODUCT, len(y), tensors, (y.shape[1],), (), y.numel())
        return
    scaled = product.to(y.dtype) * rows[:, None].to(y.dtype)
    y.add_(scaled if columns is None else scaled * columns.to(y.dtype))


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """A frozen weight ``(d_out, d_in)`` that is read as 8-bit integers with one scale per row.

    Attributes:
        values: As they are held: int8, packed NF4, or bf16.
        scale: ``(d_out,)`` fp32: a weight is about its integer times this.
        absmax: Of NF4, else None.
        d_out: Rows.
        d_in: Columns.
    """

    values: Tensor
    scale: Tensor
    absmax: Tensor | None
    d_out: int
    d_in: int

    def part(self, start: int, stop: int) -> IntegerWeight:
        """Return some rows as a weight of their own; not of NF4."""
        rows = slice(start, stop)
        return IntegerWeight(self.values[rows], self.scale[rows], None, stop - start, self.d_in)


def multiplies_integers(weight: IntegerWeight) -> bool:
    """Tell whether :func:`integer_product` can run here with such a weight."""
    found = native.library()
    is_whole = weight.d_in % PANEL == 0 and weight.d_out % PANEL == 0
    is_known = weight.absmax is not None or weight.values.dtype in _HELD
    return found is not None and found.multiplies_integers and is_whole and is_known


def integer_product(
    x: Integers,
    weight: IntegerWeight,
    y: Tensor,
    scratch: Tensor,
    *,
    is_forward: bool,
    is_added: bool,
) -> None:
    """Write, or add, ``x W^T`` or, going back, ``x W`` to ``y``, from integers.

    Args:
        x: Activations ``(m, d_in)``; going back ``(m, d_out)``, with the weight's scale put in
            before they were rounded.
        weight: For which :func:`multiplies_integers` holds.
        y: ``(m, d_out)``, or ``(m, d_in)`` going back, fp32.
        scratch: Of :func:`scratch_bytes`.
        is_forward: Which of the two.
        is_added: To what ``y`` held.
    """
    kernels = native.library()
    assert kernels is not None  # noqa: S101 - multiplies_integers() said so
    (rows, depth), threads = x.values.shape, torch.get_num_threads()
    held = _HELD_NF4 if weight.absmax is not None else _HELD[weight.values.dtype]
    sizes = (rows, y.shape[1], depth, held, threads, scratch.numel() // threads)
    weights = (weight.values, weight.scale, weight.absmax)
    tensors = (x.values, x.scale, *weights, y, scratch, x.excess)
    kernel = Kernel.INTEGER_FORWARD if is_forward else Kernel.INTEGER_BACKWARD
    kernels.run(
        kernel, y.shape[1] // PANEL * threads, tensors, sizes, (float(is_added),), SMALL + 1
    )


def scratch_bytes(weight: IntegerWeight) -> int:
    """Return the bytes :func:`integer_product` lays weights out in, for all threads."""
    return torch.get_num_threads() * PANEL * max(weight.d_out, weight.d_in)
