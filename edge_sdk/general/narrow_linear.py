"""A frozen linear layer stored in bf16 and computed in fp32, for CPUs without bf16 units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _WidenedProduct(torch.autograd.Function):
    """``x W^T`` with ``W`` widened for the product only.

    Plain autograd would keep the widened copy of every layer until the backward pass, which
    is more memory than loading the model in fp32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return x @ weight.to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.weight.to(gradient.dtype), None


class NarrowLinear(nn.Linear):
    """A frozen ``d_in -> d_out`` layer whose weight is narrower than its activations."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., d_in)`` to ``(..., d_out)`` in the number format of ``x``."""
        y: Tensor = _WidenedProduct.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(x.dtype)


def store_as_bf16(model: nn.Module, names: Sequence[str], compute_dtype: torch.dtype) -> None:
    """Make the named bf16 linear layers compute in ``compute_dtype``, and widen all the rest."""
    narrow = [model.get_submodule(name) for name in names]
    kept = {id(parameter) for layer in narrow for parameter in layer.parameters()}
    for layer in narrow:
        # in place: the same weights, read another way
        layer.__class__ = NarrowLinear
    for parameter in model.parameters():
        if id(parameter) not in kept and parameter.is_floating_point():
            parameter.data = parameter.data.to(compute_dtype)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(compute_dtype))
