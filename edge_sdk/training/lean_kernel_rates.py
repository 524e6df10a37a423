"""How fast the kernels of the hand-written passes run here; nothing but torch is imported."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import psutil
import torch

from edge_sdk.compute.lean_rates import LeanRates
from edge_sdk.lean.frozen import FrozenMatrix, Int8Matrix, Nf4Matrix, PlainMatrix
from edge_sdk.lean.native import library
from edge_sdk.lean.nf4 import quantize_nf4
from edge_sdk.lean.products import IntegerProducts, Operand
from edge_sdk.lean.row_operations import gate_backward, gate_forward
from edge_sdk.lean.workspace import Workspace
from edge_sdk.memory.heap import release_freed_memory
from edge_sdk.training.lean_kernels import tiny_lean_round, why_integers_unusable

_ROWS, _FEW_ROWS, _IN, _OUT = 256, 16, 768, 2048
_FASTEST = 100e9  # numbers per second, where two times cannot be told apart
_MOVED_ROWS = 512
_TRIES = 3
_FEW_BLOCKS, _MANY_BLOCKS, _EXAMPLES = 2, 6, 5
_STEPS = 4


def measure_lean(half_rate_rows: float) -> LeanRates:
    """Run every kernel on the threads torch has.

    Args:
        half_rate_rows: Rows of a product at which half its rate is reached.
    """
    block_s, example_s = _overheads_s()
    int8_flops_per_s = _int8_flops_per_s() * (1 + half_rate_rows / _ROWS)
    process_bytes = resident_bytes()  # by now everything was used once
    weights = _weights()
    wide = torch.empty(_OUT, _IN, dtype=torch.float32)
    found = library()
    return LeanRates(
        int8_flops_per_s=int8_flops_per_s,
        nf4_widened_per_s=_numbers_per_s(lambda: weights["nf4"].widen(wide)),
        int8_widened_per_s=_numbers_per_s(lambda: weights["int8"].widen(wide)),
        bf16_widened_per_s=_numbers_per_s(lambda: weights["bf16"].widen(wide)),
        nf4_to_int8_per_s=_turned_per_s(weights["nf4"], weights["int8"]),
        moved_bytes_per_s=_moved_bytes_per_s(),
        block_overhead_s=block_s,
        example_overhead_s=example_s,
        process_bytes=process_bytes,
        has_fused=found is not None,
        multiplies_integers=found is not None and found.multiplies_integers,
    )


def _weights() -> dict[str, FrozenMatrix]:
    """Return one weight in the formats that are decoded."""
    weight = 0.05 * torch.arange(_OUT * float(_IN)).sin().reshape(_OUT, _IN)
    scale = weight.abs().amax(dim=1) / 127
    return {
        "nf4": Nf4Matrix(*quantize_nf4(weight), _OUT, _IN),
        "int8": Int8Matrix((weight / scale[:, None]).round_().to(torch.int8), scale),
        "bf16": PlainMatrix(weight.to(torch.bfloat16)),
    }


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


def _turned_per_s(weight: FrozenMatrix, integers: FrozenMatrix) -> float:
    """Return how fast products of few rows turn a weight to integers, by what they take longer."""
    longer_s = _integer_products_s(weight, _FEW_ROWS) - _integer_products_s(integers, _FEW_ROWS)
    return min(_FASTEST, 2 * _IN * _OUT / max(1e-9, longer_s))


def _integer_products_s(weight: FrozenMatrix, rows: int) -> float:
    """Return the seconds of both products, turning what they multiply to integers included."""
    workspace = Workspace()
    products = IntegerProducts(workspace)
    x, g = torch.ones(rows, _IN), torch.ones(rows, _OUT)
    y, dx = torch.empty(rows, _OUT), torch.empty(rows, _IN)

    def both() -> None:
        products.forward(Operand(x, workspace), weight, y, is_added=False)
        products.backward(g, weight, dx, is_added=False)

    return fastest_s(both)


def _int8_flops_per_s() -> float:
    """Return the rate of products of integers; 0 if they are of no use."""
    if why_integers_unusable() is not None:
        return 0.0
    weight = Int8Matrix(torch.ones(_OUT, _IN, dtype=torch.int8), torch.ones(_OUT))
    return 4 * _ROWS * _IN * _OUT / _integer_products_s(weight, _ROWS)


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
