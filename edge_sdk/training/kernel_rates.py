"""How fast the kernels of training run here, and how large the libraries that hold them are.

``python -m edge_sdk.training.kernel_rates THREADS`` prints the
:class:`~edge_sdk.compute.rates.Rates` as JSON. It is a process of its own because its memory is
part of what is measured, and because a kernel built for another device may end it. What the
hand-written passes use is measured first: their process never imports the libraries of the general
trainer.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from importlib import import_module

import msgspec
import torch

from edge_sdk.compute.rates import Rates, assumed_rates
from edge_sdk.memory.heap import allocate_exactly
from edge_sdk.training.lean_kernel_rates import fastest_s, measure_lean
from edge_sdk.training.lean_kernels import lean_warm_up

_ROWS, _FEW_ROWS, _IN, _OUT = 256, 16, 768, 2048
_HOPELESS = 0.5  # of the rate of fp32 on few rows: bf16 is then not measured on many


def main() -> int:
    """Measure and print."""
    threads = int(sys.argv[1])
    torch.set_num_threads(threads)
    sys.stdout.write(msgspec.json.encode(measure(threads)).decode() + "\n")
    return 0


def measure(threads: int) -> Rates:
    """Run every kernel on as many threads as training will have."""
    import_module("edge_sdk.cli")  # its memory is part of that of a device

    allocate_exactly()
    lean_warm_up("wide", threads)  # what it imports is not what is timed
    started = time.perf_counter()
    rates = _with_products(replace(assumed_rates(threads), origin="measured"))
    rates = replace(rates, lean=measure_lean(rates.half_rate_rows))
    lean_s = time.perf_counter() - started

    from edge_sdk.training.general_rates import measure_generic  # only now: it imports transformers

    rates = measure_generic(rates)
    return replace(rates, measured_s=rates.measured_s + lean_s)


def _with_products(rates: Rates) -> Rates:
    """Add the rates of large products, and the rows at which half of that is reached."""
    many, few = _rate_at(_ROWS, torch.float32), _rate_at(_FEW_ROWS, torch.float32)
    # rate(m) = full * m / (m + half): two rates give both unknowns
    half = max(0.0, (many - few) / (few / _FEW_ROWS - many / _ROWS))
    rows, bf16 = _FEW_ROWS, _rate_at(_FEW_ROWS, torch.bfloat16)
    if bf16 >= _HOPELESS * few:
        rows, bf16 = _ROWS, _rate_at(_ROWS, torch.bfloat16)
    return replace(
        rates,
        fp32_flops_per_s=many * (1 + half / _ROWS),
        bf16_flops_per_s=bf16 * (1 + half / rows),
        half_rate_rows=half,
    )


def _rate_at(rows: int, dtype: torch.dtype) -> float:
    """Return FLOP/s of ``x W^T`` and ``g W`` together, as forward and backward need them."""
    x, weight = torch.ones(rows, _IN, dtype=dtype), torch.ones(_OUT, _IN, dtype=dtype)
    gradient = torch.ones(rows, _OUT, dtype=dtype)
    return 4 * rows * _IN * _OUT / fastest_s(lambda: (x @ weight.T, gradient @ weight))


if __name__ == "__main__":
    sys.exit(main())
