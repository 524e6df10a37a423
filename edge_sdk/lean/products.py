"""Products with frozen weights: in a wide format, or of 8-bit integers on both sides.

A frozen weight needs two products and no third: ``y = x W^T`` going forward and ``dx = g W`` coming
back. Both read the weight from its few bits into one workspace that every layer shares.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from edge_sdk.lean.frozen import FrozenMatrix, Int8Matrix, PlainMatrix
from edge_sdk.lean.integer_products import (
    GROUP,
    Integers,
    IntegerWeight,
    add_product,
    integer_product,
    multiplies_integers,
    quantize_rows,
    scratch_bytes,
)
from edge_sdk.lean.workspace import Workspace


class Operand:
    """The input of several layers; it is turned to integers once for all of them.

    Args:
        x: ``(rows, d_in)``.
        workspace: Holds the integers until the next operand of that name.
        name: Of the operand; one that outlives others needs its own.
    """

    def __init__(self, x: Tensor, workspace: Workspace, name: str = "operand") -> None:
        self.x = x
        self._name = name
        self._workspace = workspace
        self._integers: Integers | None = None

    def integers(self) -> Integers:
        """Return ``x`` as integers."""
        if self._integers is None:
            self._integers = _quantized(self.x, None, self._workspace, self._name)
        return self._integers


class Products(Protocol):
    """How a layer multiplies with its frozen weight."""

    def forward(self, operand: Operand, weight: FrozenMatrix, y: Tensor, is_added: bool) -> None:
        """``y = x W^T``, or added to ``y``: ``(rows, d_in)`` to ``(rows, d_out)``."""

    def backward(self, g: Tensor, weight: FrozenMatrix, dx: Tensor, is_added: bool) -> None:
        """``dx = g W``, or added to ``dx``: ``(rows, d_out)`` to ``(rows, d_in)``."""


class WideProducts:
    """Weights are widened to the format of the activations, then multiplied.

    Args:
        workspace: Holds one widened weight.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def forward(self, operand: Operand, weight: FrozenMatrix, y: Tensor, is_added: bool) -> None:
        """``y = x W^T``, or added."""
        y.addmm_(operand.x, self._widened(weight, y.dtype).T, beta=float(is_added))

    def backward(self, g: Tensor, weight: FrozenMatrix, dx: Tensor, is_added: bool) -> None:
        """``dx = g W``, or added."""
        dx.addmm_(g, self._widened(weight, dx.dtype), beta=float(is_added))

    def _widened(self, weight: FrozenMatrix, dtype: torch.dtype) -> Tensor:
        if isinstance(weight, PlainMatrix) and weight.values.dtype == dtype:
            return weight.values
        return weight.widen(self._workspace.take("weight", weight.shape, dtype))


class IntegerProducts:
    """Weights and activations are 8-bit integers, summed exactly in 32 bits.

    Some neighbouring numbers of a row of activations share a scale. Going back, the scale of a
    weight's row is put into the gradient before it is rounded, since it varies within the sum.

    Args:
        workspace: Holds integers, scales and what the product needs.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._weights = dict[int, tuple[FrozenMatrix, IntegerWeight]]()

    def forward(self, operand: Operand, weight: FrozenMatrix, y: Tensor, is_added: bool) -> None:
        """``y = x W^T``, or added."""
        integers = self.integer_weight(weight)
        if multiplies_integers(integers) and y.dtype == torch.float32:
            self._multiply(operand.integers(), integers, y, is_forward=True, is_added=is_added)
        else:
            values = self._values(weight, integers).T
            self._multiply_plain(operand.integers(), values, integers.scale, y, is_added)

    def backward(self, g: Tensor, weight: FrozenMatrix, dx: Tensor, is_added: bool) -> None:
        """``dx = g W``, or added."""
        integers = self.integer_weight(weight)
        if multiplies_integers(integers) and dx.dtype == torch.float32:
            self.backward_integers(g, integers, dx, is_added)
        else:
            gradient = _quantized(g, integers.scale, self._workspace)
            self._multiply_plain(gradient, self._values(weight, integers), None, dx, is_added)

    def forward_integers(self, operand: Operand, weight: IntegerWeight, y: Tensor) -> None:
        """Write ``y = x W^T`` with a weight for which ``multiplies_integers`` holds."""
        self._multiply(operand.integers(), weight, y, is_forward=True, is_added=False)

    def backward_integers(
        self, g: Tensor, weight: IntegerWeight, dx: Tensor, is_added: bool
    ) -> None:
        """``dx = g W``, or added, with a weight for which ``multiplies_integers`` holds."""
        gradient = _quantized(g, weight.scale, self._workspace)
        self._multiply(gradient, weight, dx, is_forward=False, is_added=is_added)

    def integer_weight(self, weight: FrozenMatrix) -> IntegerWeight:
        """Return how a weight is read as integers; its scales are found once."""
        known = self._weights.get(id(weight))
        if known is None:
            known = self._weights[id(weight)] = (weight, weight.as_integers())
        return known[1]

    def _multiply(
        self, x: Integers, weight: IntegerWeight, y: Tensor, *, is_forward: bool, is_added: bool
    ) -> None:
        scratch = self._workspace.take("panels", (scratch_bytes(weight),), torch.int8)
        integer_product(x, weight, y, scratch, is_forward=is_forward, is_added=is_added)

    def _multiply_plain(
        self, x: Integers, values: Tensor, columns: Tensor | None, y: Tensor, is_added: bool
    ) -> None:
        """Do the same with torch's own product, one group after the other."""
        if not is_added:
            y.zero_()
        product = self._workspace.take("product", y.shape, torch.int32)
        for group, first in enumerate(range(0, len(values), GROUP)):
            part = slice(first, first + GROUP)
            torch._int_mm(x.values[:, part], values[part], out=product)
            add_product(product, x.scale[:, group].contiguous(), columns, y)

    def _values(self, weight: FrozenMatrix, integers: IntegerWeight) -> Tensor:
        """Return the integers of a weight as a matrix of their own."""
        if isinstance(weight, Int8Matrix):
            return weight.values
        wide = weight.widen(self._workspace.take("weight", weight.shape))
        values = self._workspace.take("integer weight", weight.shape, torch.int8)
        return values.copy_(torch.div(wide, integers.scale[:, None], out=wide).round_())


def _quantized(
    x: Tensor, columns: Tensor | None, workspace: Workspace, name: str = "operand"
) -> Integers:
    groups = (len(x), -(-x.shape[1] // GROUP))
    integers = Integers(
        values=workspace.take(f"{name} integers", x.shape, torch.int8),
        scale=workspace.take(f"{name} scale", groups),
        excess=workspace.take(f"{name} excess", groups, torch.int32),
    )
    quantize_rows(x, columns, integers)
    return integers
