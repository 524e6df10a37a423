"""Run each kernel that training uses once for real, and check what it computes."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from edge_sdk.compute.execution import Quantization
from edge_sdk.errors import ModelError
from edge_sdk.general.base_model import LoadedBase
from edge_sdk.general.narrow_linear import NarrowLinear
from edge_sdk.model.model_shape import read_shape
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import train_round
from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.task import AdapterSpec, BaseModel, TrainingSpec

TINY_LAYERS = 4
"""Blocks of the model that :func:`tiny_round` trains."""

_LARGE = 512
_TOLERANCE = 1e-2  # of a product in bf16, relative to its largest number
_NF4_TOLERANCE = 0.2  # of a weight of at most 1: half the widest gap between two codes is 0.15
_FAILURES = (ImportError, OSError, RuntimeError, AttributeError, NotImplementedError, ValueError)
_TINY = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": TINY_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_SPEC = BaseModel(model="tiny", digest="0" * 64)


def warm_up(quantization: Quantization, threads: int) -> None:
    """Import and start everything a round uses, with a model too small to matter.

    What is not there yet when memory runs short may break beyond repair: half-imported modules,
    thread pools.

    Raises:
        ModelError: The number format does not work here.
    """
    torch.set_num_threads(threads)
    torch.mm(torch.ones(_LARGE, _LARGE), torch.ones(_LARGE, _LARGE))  # wakes every thread
    tiny_round(steps=1)
    reason = why_unusable(quantization)
    if reason is not None:
        raise ModelError(f"{quantization} does not work on this machine: {reason}")


def why_unusable(quantization: Quantization) -> str | None:
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


def tiny_round(steps: int) -> list[float]:
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
