"""The formats a matrix is held in: its tensors on disk, how they are made and how they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edge_sdk.compute.execution import ProductFormat, Quantization
from edge_sdk.errors import ModelError
from edge_sdk.lean.frozen import FrozenMatrix, Int8Matrix, Nf4Matrix, PlainMatrix
from edge_sdk.lean.nf4 import quantize_nf4
from edge_sdk.lean.row_operations import NF4_BLOCK
from edge_sdk.lean.tensor_file import Part, TensorSpec

_CHUNK = 1 << 20  # numbers converted at once
_LARGEST_INT8 = 127


class HeldFormat(Protocol):
    """A way to hold matrices; ``name`` is a tensor's in the model, such as ``lm_head.weight``."""

    def specs(self, name: str, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """Return the tensors that hold a matrix ``(d_out, d_in)``."""

    def encode(self, name: str, weight: Tensor) -> Iterator[Part]:
        """Make those tensors' numbers from the model's, in parts."""

    def matrix(
        self, name: str, shape: tuple[int, int], tensor: Callable[[str], Tensor]
    ) -> FrozenMatrix:
        """Make the matrix of its tensors, which ``tensor`` returns by name."""


@dataclass(frozen=True, slots=True)
class PlainFormat:
    """Floating-point numbers as they are, rounded to one format.

    Attributes:
        dtype: bf16 or fp32.
    """

    dtype: torch.dtype

    def specs(self, name: str, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """Return the one tensor."""
        return {name: TensorSpec(self.dtype, shape)}

    def encode(self, name: str, weight: Tensor) -> Iterator[Part]:
        """Convert a tensor of any shape."""
        flat = weight.reshape(-1)
        for first in range(0, flat.numel(), _CHUNK):
            yield name, first, flat[first : first + _CHUNK].to(self.dtype)

    def matrix(
        self, name: str, shape: tuple[int, int], tensor: Callable[[str], Tensor]
    ) -> FrozenMatrix:
        """Use the tensor as it is."""
        return PlainMatrix(tensor(name))


class Int8Format:
    """Symmetric 8-bit integers with one scale per row."""

    def specs(self, name: str, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """Return the integers and the scales."""
        return {
            name: TensorSpec(torch.int8, shape),
            f"{name}.scale": TensorSpec(torch.float32, shape[:1]),
        }

    def encode(self, name: str, weight: Tensor) -> Iterator[Part]:
        """Divide each row by its scale and round to nearest; a row of zeros has scale 1.

        Raises:
            ModelError: NaN or infinity.
        """
        d_in = weight.shape[1]
        rows = max(1, _CHUNK // d_in)
        for first in range(0, len(weight), rows):
            chunk = weight[first : first + rows].to(torch.float32, copy=True)
            scale = chunk.abs().amax(dim=1) / _LARGEST_INT8
            scale[scale == 0] = 1
            _refuse_not_finite(name, scale)
            chunk.div_(scale[:, None]).round_().clamp_(-_LARGEST_INT8, _LARGEST_INT8)
            yield name, first * d_in, chunk.to(torch.int8)
            yield f"{name}.scale", first, scale

    def matrix(
        self, name: str, shape: tuple[int, int], tensor: Callable[[str], Tensor]
    ) -> FrozenMatrix:
        """Put integers and scales together."""
        return Int8Matrix(tensor(name), tensor(f"{name}.scale"))


class Nf4Format:
    """bitsandbytes' NF4."""

    def specs(self, name: str, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """Return the codes and the magnitudes of the blocks."""
        n = shape[0] * shape[1]
        return {
            name: TensorSpec(torch.uint8, (-(-n // 2),)),
            f"{name}.absmax": TensorSpec(torch.float32, (-(-n // NF4_BLOCK),)),
        }

    def encode(self, name: str, weight: Tensor) -> Iterator[Part]:
        """Quantize the matrix as a whole: its blocks run on from row to row.

        Raises:
            ModelError: NaN or infinity.
        """
        packed, absmax = quantize_nf4(weight)
        _refuse_not_finite(name, absmax)
        yield name, 0, packed
        yield f"{name}.absmax", 0, absmax

    def matrix(
        self, name: str, shape: tuple[int, int], tensor: Callable[[str], Tensor]
    ) -> FrozenMatrix:
        """Put codes and magnitudes together."""
        return Nf4Matrix(tensor(name), tensor(f"{name}.absmax"), *shape)


BF16, FP32 = PlainFormat(torch.bfloat16), PlainFormat(torch.float32)

LINEAR_FORMATS: dict[str, HeldFormat] = {
    "nf4": Nf4Format(),
    "int8": Int8Format(),
    "bf16": BF16,
    "fp32": FP32,
}
"""How the linear layers inside the blocks are held, by quantization."""


def outer_format(quantization: Quantization, products: ProductFormat) -> HeldFormat:
    """Return how the embedding and an untied head are held: in the format they multiply in."""
    if products == "int8":
        return LINEAR_FORMATS["int8"]
    return FP32 if quantization == "fp32" else BF16


def _refuse_not_finite(name: str, magnitudes: Tensor) -> None:
    if not magnitudes.isfinite().all():
        raise ModelError(f"{name} holds NaN or infinity: the model's files are damaged")
