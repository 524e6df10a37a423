"""How fast what only the general trainer uses runs here, and what its libraries take."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
import transformers

from edge_sdk.compute.execution import Quantization
from edge_sdk.compute.rates import Rates
from edge_sdk.training.kernels import TINY_LAYERS, tiny_round, why_unusable
from edge_sdk.training.lean_kernel_rates import fastest_s, resident_bytes

_IN, _OUT = 768, 2048
_FRESH_BYTES = 16 << 20


def measure_generic(rates: Rates) -> Rates:
    """Return the rates with those of the general trainer, and the seconds that this took."""
    _ = transformers.LlamaForCausalLM  # imported on first use, which is not what is timed
    started = time.perf_counter()
    block_overhead_s = min(tiny_round(steps=4)) / TINY_LAYERS
    fresh = _fresh_bytes_per_s()
    unusable: dict[Quantization, str] = {}
    if reason := why_unusable("bf16"):
        unusable["bf16"] = reason
    process_bytes = resident_bytes()
    nf4_elements_per_s = 0.0
    if reason := why_unusable("nf4"):
        unusable["nf4"] = reason
    else:
        nf4_elements_per_s = _nf4_elements_per_s()
    return replace(
        rates,
        fresh_bytes_per_s=fresh,
        nf4_elements_per_s=nf4_elements_per_s,
        block_overhead_s=block_overhead_s,
        process_bytes=process_bytes,
        nf4_bytes=max(0, resident_bytes() - process_bytes),
        unusable=unusable,
        measured_s=time.perf_counter() - started,
    )


def _fresh_bytes_per_s() -> float:
    source = torch.ones(_FRESH_BYTES // 32 // 4)
    return _FRESH_BYTES / fastest_s(lambda: [source + 1 for _ in range(32)])


def _nf4_elements_per_s() -> float:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(torch.ones(_OUT, _IN), quant_type="nf4")
    return _IN * _OUT / fastest_s(lambda: functional.dequantize_4bit(packed, state))
