"""Run each kernel that training uses, once for real: whether it works, how fast, how large.

``python -m edge_sdk.kernels THREADS`` prints the :class:`~edge_sdk.rates.Rates` as JSON. It is a
process of its own because its memory is part of what is measured, and because a kernel built
for another device may end it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import psutil
import torch
import transformers
from torch import Tensor, nn

from edge_sdk.base_model import LoadedBase
from edge_sdk.data import Example
from edge_sdk.device import has_native_bf16
from edge_sdk.execution import Quantization
from edge_sdk.heap import allocate_exactly, release_freed_memory
from edge_sdk.model_shape import read_shape
from edge_sdk.narrow_linear import NarrowLinear
from edge_sdk.rates import Rates
from edge_sdk.training import train_round
from edge_sdk.wire.messages import AdapterSpec, BaseModel, TrainingSpec
from edge_sdk.wire.payload import adapter_shapes

_ROWS, _FEW_ROWS, _IN, _OUT = 256, 16, 768, 2048
_FRESH_BYTES = 16 << 20
_TRIES = 3
_TOLERANCE = 1e-2  # of a product in bf16, relative to its largest number
_NF4_TOLERANCE = 0.2  # of a weight of at most 1: half the widest gap between two codes is 0.15
_FAILURES = (ImportError, OSError, RuntimeError, AttributeError, NotImplementedError, ValueError)
_TINY = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


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
    if reason := _why_unusable("bf16"):
        unusable["bf16"] = reason
    release_freed_memory()
    process_bytes = psutil.Process().memory_info().rss
    nf4_elements_per_s = 0.0
    if reason := _why_unusable("nf4"):
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


def warm_up(quantization: Quantization, threads: int) -> None:
    """Import and start everything a round uses, with a model too small to matter.

    What is not there yet when memory runs short may break beyond repair: half-imported modules,
    thread pools.

    Raises:
        ModelError: The number format does not work here.
    """
    torch.set_num_threads(threads)
    _rate_at(_ROWS, torch.float32)  # large enough for every thread
    _tiny_round(steps=1)
    reason = _why_unusable(quantization)
    if reason is not None:
        from edge_sdk.errors import ModelError

        raise ModelError(f"{quantization} does not work on this machine: {reason}")


def _why_unusable(quantization: Quantization) -> str | None:
    """Multiply once forward and backward in a number format, and check the numbers."""
    if quantization == "fp32":
        return None
    weight = torch.arange(64 * 128.0).sin().reshape(64, 128)  # neighbours differ, and so do codes
    try:
        layer, exact = _nf4_layer(weight) if quantization == "nf4" else _narrow_layer(weight)
        x = torch.linspace(-1, 1, 8 * 128).reshape(8, 128).requires_grad_()
        y = layer(x)
        y.sum().backward()
    except _FAILURES as error:
        return str(error).strip().split("\n", 1)[0] or type(error).__name__
    slope = exact.sum(dim=0).expand(8, -1)
    is_decoded = bool((exact - weight).abs().max() <= _NF4_TOLERANCE)
    if x.grad is None or not (is_decoded and _agree(y, x @ exact.T) and _agree(x.grad, slope)):
        return "its kernel gives wrong numbers"
    return None


def _agree(found: Tensor, expected: Tensor) -> bool:
    error = (found.detach().float() - expected.detach()).abs().max()
    return bool(error <= _TOLERANCE * expected.detach().abs().max())


def _nf4_layer(weight: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a 4-bit layer, and its weight decoded without the fused product."""
    from bitsandbytes import functional
    from bitsandbytes.nn import Linear4bit

    d_out, d_in = weight.shape
    layer: Any = Linear4bit(d_in, d_out, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight.data = weight
    layer = layer.to("cuda" if torch.cuda.is_available() else "cpu")
    decoded = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return layer, decoded.float().reshape(d_out, d_in)


def _narrow_layer(weight: Tensor) -> tuple[nn.Module, Tensor]:
    layer = NarrowLinear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
    return layer, weight.to(torch.bfloat16).float()


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
    return min(_tiny_round(steps=4)) / _TINY_LAYERS


def _fastest(work: Callable[[], object]) -> float:
    """Return the shortest of some runs, in seconds: the others were disturbed."""
    work()
    seconds = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _tiny_round(steps: int) -> list[float]:
    """Train a tiny random Llama; return the seconds of each step but the first."""
    config = transformers.LlamaConfig(**{k: v for k, v in _TINY.items() if k != "model_type"})
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    model.config.use_cache = False
    base = LoadedBase(model, _Padding(), _SPEC, "fp32", torch.float32)
    shape = read_shape(_TINY)
    layers = shape.target_layers(shape.default_targets)
    adapter = AdapterSpec(
        r=1, lora_alpha=1.0, target_modules=list(shape.default_targets), layers=layers
    )
    slices = {
        name: np.zeros(size, dtype=np.float32) for name, size in adapter_shapes(adapter, 1).items()
    }
    marks = list[float]()
    train_round(
        base,
        adapter,
        1,
        slices,
        TrainingSpec(local_steps=steps, batch_size=1, max_length=4),
        [Example([1, 2, 3, 4], [True] * 4)],
        seed=0,
        on_step=lambda step, loss: marks.append(time.perf_counter()),
    )
    return [after - before for before, after in pairwise(marks)]


class _Padding:
    """All that training wants of a tokenizer."""

    pad_token_id = 0


_TINY_LAYERS = 4
_SPEC = BaseModel(model="tiny", digest="0" * 64)


if __name__ == "__main__":
    sys.exit(main())
