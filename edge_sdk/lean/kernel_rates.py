"""How fast the kernels of the hand-written passes run here; nothing but torch is imported."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import psutil
import torch

from edge_sdk.heap import release_freed_memory
from edge_sdk.lean.frozen import Int8Matrix, Nf4Matrix, PlainMatrix
from edge_sdk.lean.fused import gate_backward, gate_forward, library, nf4_to_int8, quantize_rows
from edge_sdk.lean.kernels import tiny_lean_round, why_integers_unusable
from edge_sdk.lean.nf4 import quantize_nf4
from edge_sdk.lean.products import IntegerProducts, Operand
from edge_sdk.lean.rates import LeanRates
from edge_sdk.lean.workspace import Workspace

_ROWS, _IN, _OUT = 256, 768, 2048
_MOVED_ROWS = 512
_TRIES = 3
_FEW_BLOCKS, _MANY_BLOCKS, _EXAMPLES = 2, 6, 5
_STEPS = 4


def measure_lean(half_rate_rows: float, compute: torch.dtype) -> LeanRates:
    """Run every kernel on the threads torch has.

    Args:
        half_rate_rows: Rows of a product at which half its rate is reached.
        compute: Number format of activations.
    """
    block_s, example_s = _overheads_s()
    int8_flops_per_s = _int8_flops_per_s() * (1 + half_rate_rows / _ROWS)
    process_bytes = resident_bytes()  # by now everything was used once
    weight = 0.05 * torch.arange(_OUT * float(_IN)).sin().reshape(_OUT, _IN)
    nf4 = Nf4Matrix(*quantize_nf4(weight), _OUT, _IN)
    int8 = Int8Matrix(torch.ones(_OUT, _IN, dtype=torch.int8), torch.ones(_OUT))
    bf16 = PlainMatrix(weight.to(torch.bfloat16))
    wide = weight.to(compute)
    return LeanRates(
        int8_flops_per_s=int8_flops_per_s,
        nf4_widened_per_s=_numbers_per_s(lambda: nf4.widen(wide)),
        nf4_to_int8_per_s=_numbers_per_s(_turning(nf4)),
        int8_widened_per_s=_numbers_per_s(lambda: int8.widen(wide)),
        bf16_widened_per_s=_numbers_per_s(lambda: bf16.widen(wide)),
        moved_bytes_per_s=_moved_bytes_per_s(),
        block_overhead_s=block_s,
        example_overhead_s=example_s,
        has_fused=library() is not None,
        process_bytes=process_bytes,
    )


def resident_bytes() -> int:
    """Return the resident memory of this process, freed memory given back."""
    release_freed_memory()
    return int(psutil.Process().memory_info().rss)


def fastest_s(work: Callable[[], object]) -> float:
    """Return the shortest of some runs, in seconds: the others were disturbed."""
    work()
    seconds = []
    for _ in range(_TRIES):
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    return min(seconds)


def _numbers_per_s(work: Callable[[], object]) -> float:
    return _IN * _OUT / fastest_s(work)


def _turning(weight: Nf4Matrix) -> Callable[[], object]:
    """Return what turns a weight to integers, as products of integers do."""
    values, scale = torch.empty(_OUT, _IN, dtype=torch.int8), torch.empty(_OUT)
    wide = torch.empty(_OUT, _IN)

    def turn() -> None:
        if not nf4_to_int8(weight.packed, weight.absmax, values, scale):
            quantize_rows(weight.widen(wide), None, values, scale)

    return turn


def _int8_flops_per_s() -> float:
    """Return the rate of both products, turning what they multiply to integers included."""
    if why_integers_unusable() is not None:
        return 0.0
    weight = Int8Matrix(torch.ones(_OUT, _IN, dtype=torch.int8), torch.ones(_OUT))
    workspace = Workspace()
    products = IntegerProducts(workspace)
    x, g = torch.ones(_ROWS, _IN), torch.ones(_ROWS, _OUT)
    y, dx = torch.zeros(_ROWS, _OUT), torch.zeros(_ROWS, _IN)

    def both() -> None:
        products.add_forward(Operand(x, workspace), weight, y)
        products.add_backward(g, weight, dx)

    return 4 * _ROWS * _IN * _OUT / fastest_s(both)


def _moved_bytes_per_s() -> float:
    """Return the rate of a gate forward and back, and of keeping and finding again."""
    gate, up, h = (torch.ones(_MOVED_ROWS, _OUT) for _ in range(3))
    kept = torch.empty(_MOVED_ROWS, _OUT, dtype=torch.bfloat16)

    def move() -> None:
        gate_forward(gate, up, h)  # 12 bytes per number
        gate_backward(h, gate, up)  # 24
        kept.copy_(gate)  # 6
        gate.copy_(kept)  # 6

    return 48 * gate.numel() / fastest_s(move)


def _overheads_s() -> tuple[float, float]:
    """Return what one more block takes, and one more example in it."""
    few = min(tiny_lean_round(_STEPS, _FEW_BLOCKS))
    many = min(tiny_lean_round(_STEPS, _MANY_BLOCKS))
    crowded = min(tiny_lean_round(_STEPS, _MANY_BLOCKS, _EXAMPLES))
    block_s = max(1e-6, (many - few) / (_MANY_BLOCKS - _FEW_BLOCKS))
    example_s = max(0.0, (crowded - many) / (_EXAMPLES - 1) / _MANY_BLOCKS)
    return max(1e-6, block_s - example_s), example_s
