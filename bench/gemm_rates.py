"""How fast this machine multiplies at the shapes of a base model: prints rates as JSON.

A training step multiplies by every frozen matrix ``W (d_out, d_in)`` twice: ``x W^T`` forward and
``g W`` for the gradient of the input. Both are measured, in every number format.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor

from bench.train_methods import Products

_FORMATS: dict[Products, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What to multiply.

    Attributes:
        tokens: Rows of ``x`` and ``g``.
        layers: ``(d_in, d_out)`` of every linear layer of one block.
        threads: CPU threads.
        formats: Number formats to measure.
    """

    tokens: int
    layers: list[tuple[int, int]]
    threads: int
    formats: list[Products] = field(default_factory=lambda: list(_FORMATS))


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmRate:
    """What a number format reaches.

    Attributes:
        products: Number format; in int8 the sums are 32-bit integers.
        where: ``block`` for all linear layers of a block together, ``largest`` for the one with
            the most weights alone.
        forward: Operations per second of ``x W^T``, two for each multiplication.
        input_gradient: Of ``g W``.
        both: Of one after the other.
    """

    products: Products
    where: str
    forward: float
    input_gradient: float
    both: float


def main() -> int:
    """Measure what the first argument says."""
    shapes = msgspec.json.decode(sys.argv[1], type=Shapes)
    torch.set_num_threads(shapes.threads)
    rates = [dataclasses.asdict(rate) for rate in measure(shapes)]
    sys.stdout.write(json.dumps(rates) + "\n")
    return 0


def measure(shapes: Shapes) -> list[GemmRate]:
    """Time every format on every layer."""
    rates = []
    largest = max(shapes.layers, key=lambda layer: layer[0] * layer[1])
    for products in shapes.formats:
        dtype = _FORMATS[products]
        times = {size: _seconds(shapes.tokens, *size, dtype) for size in set(shapes.layers)}
        for where, layers in (("block", shapes.layers), ("largest", [largest])):
            rates.append(_rate(products, where, shapes.tokens, layers, times))
    return rates


def _rate(
    products: Products,
    where: str,
    tokens: int,
    layers: Iterable[tuple[int, int]],
    times: dict[tuple[int, int], tuple[float, float]],
) -> GemmRate:
    sizes = list(layers)
    operations = sum(2 * tokens * d_in * d_out for d_in, d_out in sizes)
    forward_s = sum(times[size][0] for size in sizes)
    gradient_s = sum(times[size][1] for size in sizes)
    return GemmRate(
        products=products,
        where=where,
        forward=operations / forward_s,
        input_gradient=operations / gradient_s,
        both=2 * operations / (forward_s + gradient_s),
    )


def _seconds(tokens: int, d_in: int, d_out: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return the shortest time of ``x W^T`` and that of ``g W``."""
    x, weight, g = (
        _random(size, dtype) for size in ((tokens, d_in), (d_out, d_in), (tokens, d_out))
    )
    if dtype == torch.int8:
        return _fastest(lambda: torch._int_mm(x, weight.T)), _fastest(
            lambda: torch._int_mm(g, weight)
        )
    y, dx = torch.empty_like(g), torch.empty_like(x)
    return _fastest(lambda: torch.mm(x, weight.T, out=y)), _fastest(
        lambda: torch.mm(g, weight, out=dx)
    )


def _random(size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        return torch.randint(-127, 128, size, dtype=dtype)
    return torch.randn(size).to(dtype)


def _fastest(work: Callable[[], object]) -> float:
    """Return the shortest of some runs, in seconds: the others were disturbed."""
    work()
    seconds = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main())
