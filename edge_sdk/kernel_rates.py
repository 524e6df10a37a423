"""How fast the kernels of training run here, and how large the libraries that hold them are.

``python -m edge_sdk.kernel_rates THREADS`` prints the :class:`~edge_sdk.rates.Rates` as JSON. It is
a process of its own because its memory is part of what is measured, and because a kernel built
for another device may end it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import msgspec
import psutil
import torch
import transformers

from edge_sdk.device import has_native_bf16
from edge_sdk.execution import Quantization
from edge_sdk.heap import allocate_exactly, release_freed_memory
from edge_sdk.kernels import TINY_LAYERS, tiny_round, why_unusable
from edge_sdk.rates import Rates

_ROWS, _FEW_ROWS, _IN, _OUT = 256, 16, 768, 2048
_FRESH_BYTES = 16 << 20
_TRIES = 3


def main() -> int:
    """Measure and print."""
    threads = int(sys.argv[1])
    torch.set_num_threads(threads)
    sys.stdout.write(msgspec.json.encode(measure(threads)).decode() + "\n")
    return 0


def measure(threads: int) -> Rates:
    """Run every kernel on as many threads as training will have."""
    import edge_sdk.cli  # noqa: F401 - its memory is part of a device's process

    allocate_exactly()
    _ = transformers.LlamaForCausalLM  # imported on first use, which is not what is timed
    started = time.perf_counter()
    block_overhead_s = _block_overhead_s()
    fp32, half_rate_rows = _product_rate(torch.float32)
    bf16 = _rate_at(_ROWS if has_native_bf16() else _FEW_ROWS, torch.bfloat16)
    fresh = _fresh_bytes_per_s()
    unusable: dict[Quantization, str] = {}
    if reason := why_unusable("bf16"):
        unusable["bf16"] = reason
    release_freed_memory()
    process_bytes = psutil.Process().memory_info().rss
    nf4_elements_per_s = 0.0
    if reason := why_unusable("nf4"):
        unusable["nf4"] = reason
    else:
        nf4_elements_per_s = _nf4_elements_per_s()
    release_freed_memory()
    return Rates(
        origin="measured",
        threads=threads,
        fp32_flops_per_s=fp32,
        bf16_flops_per_s=bf16,
        half_rate_rows=half_rate_rows,
        fresh_bytes_per_s=fresh,
        nf4_elements_per_s=nf4_elements_per_s,
        block_overhead_s=block_overhead_s,
        process_bytes=process_bytes,
        nf4_bytes=max(0, psutil.Process().memory_info().rss - process_bytes),
        unusable=unusable,
        measured_s=time.perf_counter() - started,
    )


def _product_rate(dtype: torch.dtype) -> tuple[float, float]:
    """Return the rate of large products, and the rows at which half of it is reached."""
    many, few = _rate_at(_ROWS, dtype), _rate_at(_FEW_ROWS, dtype)
    # rate(m) = full * m / (m + half): two rates give both unknowns
    half = max(0.0, (many - few) / (few / _FEW_ROWS - many / _ROWS))
    return many * (1 + half / _ROWS), half


def _rate_at(rows: int, dtype: torch.dtype) -> float:
    """Return FLOP/s of ``x W^T`` and ``g W`` together, as forward and backward need them."""
    x, weight = torch.ones(rows, _IN, dtype=dtype), torch.ones(_OUT, _IN, dtype=dtype)
    gradient = torch.ones(rows, _OUT, dtype=dtype)
    return 4 * rows * _IN * _OUT / _fastest(lambda: (x @ weight.T, gradient @ weight))


def _fresh_bytes_per_s() -> float:
    source = torch.ones(_FRESH_BYTES // 32 // 4)
    return _FRESH_BYTES / _fastest(lambda: [source + 1 for _ in range(32)])


def _nf4_elements_per_s() -> float:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(torch.ones(_OUT, _IN), quant_type="nf4")
    return _IN * _OUT / _fastest(lambda: functional.dequantize_4bit(packed, state))


def _block_overhead_s() -> float:
    return min(tiny_round(steps=4)) / TINY_LAYERS


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
