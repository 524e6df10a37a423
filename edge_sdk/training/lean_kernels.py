"""Run what the hand-written passes use once for real, and check what it computes."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sdk.compute.execution import ProductFormat
from edge_sdk.errors import ModelError
from edge_sdk.lean.architecture import read_architecture
from edge_sdk.lean.base import LeanBase
from edge_sdk.lean.frozen import FrozenMatrix, Int8Matrix, Nf4Matrix, PlainMatrix
from edge_sdk.lean.nf4 import quantize_nf4
from edge_sdk.lean.prepared import PreparedBase
from edge_sdk.lean.products import IntegerProducts, Operand
from edge_sdk.lean.workspace import Workspace
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import train_round
from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.task import AdapterSpec, TrainingSpec

_LARGE = 512
_ROWS = 32
_SIZES = ((64, 128), (48, 96))  # of whole panels, and not
_LARGEST = 127
_TOLERANCE = 0.1  # of a product, relative to its largest number: both sides are rounded
_FAILURES = (RuntimeError, AttributeError, NotImplementedError, ValueError)
_TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def lean_warm_up(products: ProductFormat, threads: int) -> None:
    """Import and start everything a round uses, with a model too small to matter.

    What is not there yet when memory runs short may break beyond repair: half-imported modules,
    thread pools.

    Raises:
        ModelError: The format of the products does not work here.
    """
    torch.set_num_threads(threads)
    torch.mm(torch.ones(_LARGE, _LARGE), torch.ones(_LARGE, _LARGE))  # wakes every thread
    tiny_lean_round(steps=1)
    reason = why_integers_unusable() if products == "int8" else None
    if reason is not None:
        raise ModelError(f"int8 products do not work on this machine: {reason}")


def why_integers_unusable() -> str | None:
    """Multiply integers once forward and backward, in every way there is, and check the numbers."""
    try:
        is_right = all(_is_exact(d_out, d_in) and _is_near(d_out, d_in) for d_out, d_in in _SIZES)
    except _FAILURES as error:
        return str(error).strip().split("\n", 1)[0] or type(error).__name__
    return None if is_right else "they give wrong numbers"


def _is_exact(d_out: int, d_in: int) -> bool:
    """Multiply the largest integers: some kernels add them up in fewer bits than it takes."""
    values = torch.full((d_out, d_in), -_LARGEST, dtype=torch.int8)
    values[: d_out // 4] = _LARGEST
    weight = Int8Matrix(values, torch.ones(d_out))
    x, g = torch.full((_ROWS, d_in), float(_LARGEST)), torch.full((_ROWS, d_out), -float(_LARGEST))
    y, dx = _multiplied(x, g, weight)
    exact = values.float()
    return torch.equal(y, x @ exact.T) and torch.equal(dx, g @ exact)


def _is_near(d_out: int, d_in: int) -> bool:
    """Multiply numbers that are rounded on both sides."""
    wide = torch.arange(d_out * float(d_in)).sin().reshape(d_out, d_in)
    weight = Nf4Matrix(*quantize_nf4(wide), d_out, d_in)
    weight.widen(wide)
    x = torch.linspace(-1, 1, _ROWS * d_in).reshape(_ROWS, d_in)
    g = torch.linspace(1, 2, _ROWS * d_out).cos().reshape(_ROWS, d_out)
    y, dx = _multiplied(x, g, weight)
    return _agree(y, x @ wide.T) and _agree(dx, g @ wide)


def _multiplied(x: Tensor, g: Tensor, weight: FrozenMatrix) -> tuple[Tensor, Tensor]:
    """Return ``x W^T`` and ``g W`` from products of integers."""
    d_out, d_in = weight.shape
    y, dx = torch.empty(_ROWS, d_out), torch.empty(_ROWS, d_in)
    workspace = Workspace()
    products = IntegerProducts(workspace)
    products.forward(Operand(x, workspace), weight, y, is_added=False)
    products.backward(g, weight, dx, is_added=False)
    return y, dx


def _agree(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def tiny_lean_round(steps: int, blocks: int = 2, examples: int = 1) -> list[float]:
    """Train a tiny random Llama; return the seconds of each step but the first."""
    base = _tiny_base(blocks)
    shape = base.architecture.shape
    adapter = AdapterSpec(
        r=1,
        lora_alpha=1.0,
        target_modules=list(shape.default_targets),
        layers=shape.target_layers(shape.default_targets),
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
        TrainingSpec(local_steps=steps, batch_size=examples, max_length=4),
        [Example([1, 2, 3, 4], [True] * 4)] * examples,
        seed=0,
        on_step=lambda step, loss: marks.append(time.perf_counter()),
    )
    return [after - before for before, after in pairwise(marks)]


def _tiny_base(blocks: int) -> LeanBase:
    config = _TINY | {"num_hidden_layers": blocks}
    architecture = read_architecture(config)
    shape, d = architecture.shape, architecture.shape.hidden_size
    matrices: dict[str, FrozenMatrix] = {
        layer.name: PlainMatrix(torch.zeros(layer.d_out, layer.d_in)) for layer in shape.linears
    }
    matrices["model.embed_tokens"] = PlainMatrix(torch.zeros(shape.vocab_size, d))
    vectors = {"model.norm.weight": torch.ones(d)}
    for i in range(blocks):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            vectors[f"model.layers.{i}.{norm}.weight"] = torch.ones(d)
    prepared = PreparedBase(config, "fp32", matrices, vectors, Path())
    return LeanBase(prepared, architecture, "wide", torch.float32)
