"""Products with frozen weights: in a wide format, or of 8-bit integers on both sides.

A frozen weight needs two products and no third: ``y = x W^T`` going forward and ``dx = g W`` coming
back. Both read the weight from its few bits into one workspace that every layer shares.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from edge_sdk.lean.frozen import FrozenMatrix, Int8Matrix, Nf4Matrix, PlainMatrix
from edge_sdk.lean.fused import add_product, nf4_to_int8, quantize_rows
from edge_sdk.lean.workspace import Workspace

ProductFormat = Literal["wide", "int8"]
"""Format the products with frozen weights are computed in; wide is that of the activations."""


class Operand:
    """The input of several layers; it is turned to integers once for all of them.

    Args:
        x: ``(rows, d_in)``.
        workspace: Holds the integers until the next operand.
    """

    def __init__(self, x: Tensor, workspace: Workspace) -> None:
        self.x = x
        self._workspace = workspace
        self._integers: tuple[Tensor, Tensor] | None = None

    def integers(self) -> tuple[Tensor, Tensor]:
        """Return ``x`` as int8 and one scale per row."""
        if self._integers is None:
            self._integers = _quantized(self.x, None, self._workspace)
        return self._integers


class Products(Protocol):
    """How a layer multiplies with its frozen weight."""

    def add_forward(self, operand: Operand, weight: FrozenMatrix, y: Tensor) -> None:
        """``y += x W^T``: ``(rows, d_in)`` to ``(rows, d_out)``."""

    def add_backward(self, g: Tensor, weight: FrozenMatrix, dx: Tensor) -> None:
        """``dx += g W``: ``(rows, d_out)`` to ``(rows, d_in)``."""


class WideProducts:
    """Weights are widened to the format of the activations, then multiplied.

    Args:
        workspace: Holds one widened weight.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def add_forward(self, operand: Operand, weight: FrozenMatrix, y: Tensor) -> None:
        """``y += x W^T``."""
        y.addmm_(operand.x, self._widened(weight, y.dtype).T)

    def add_backward(self, g: Tensor, weight: FrozenMatrix, dx: Tensor) -> None:
        """``dx += g W``."""
        dx.addmm_(g, self._widened(weight, dx.dtype))

    def _widened(self, weight: FrozenMatrix, dtype: torch.dtype) -> Tensor:
        if isinstance(weight, PlainMatrix) and weight.values.dtype == dtype:
            return weight.values
        return weight.widen(self._workspace.take("weight", weight.shape, dtype))


class IntegerProducts:
    """Weights and activations are 8-bit integers, summed exactly in 32 bits.

    Activations have one scale per row. Going back, the scale of a weight's row is put into the
    gradient before it is rounded, since it varies within the sum.

    Args:
        workspace: Holds integers, scales and one product.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def add_forward(self, operand: Operand, weight: FrozenMatrix, y: Tensor) -> None:
        """``y += x W^T``."""
        values, scale = self._integers(weight)
        x, rows = operand.integers()
        add_product(self._product(x, values.T), rows, scale, y)

    def add_backward(self, g: Tensor, weight: FrozenMatrix, dx: Tensor) -> None:
        """``dx += g W``."""
        values, scale = self._integers(weight)
        gradient, rows = _quantized(g, scale, self._workspace)
        add_product(self._product(gradient, values), rows, None, dx)

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        out = self._workspace.take("product", (left.shape[0], right.shape[1]), torch.int32)
        torch._int_mm(left, right, out=out)
        return out

    def _integers(self, weight: FrozenMatrix) -> tuple[Tensor, Tensor]:
        if isinstance(weight, Int8Matrix):
            return weight.values, weight.scale
        values = self._workspace.take("integer weight", weight.shape, torch.int8)
        scale = self._workspace.take("weight scale", (weight.shape[0],))
        is_nf4 = isinstance(weight, Nf4Matrix)
        if not (is_nf4 and nf4_to_int8(weight.packed, weight.absmax, values, scale)):  # type: ignore[attr-defined]
            wide = weight.widen(self._workspace.take("weight", weight.shape))
            quantize_rows(wide, None, values, scale)
        return values, scale


def _quantized(x: Tensor, columns: Tensor | None, workspace: Workspace) -> tuple[Tensor, Tensor]:
    integers = workspace.take("integers", x.shape, torch.int8)
    scale = workspace.take("row scale", (len(x),))
    quantize_rows(x, columns, integers, scale)
    return integers, scale
