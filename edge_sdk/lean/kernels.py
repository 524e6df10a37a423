"""Run what the hand-written passes use once for real, and check what it computes."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sdk.errors import ModelError
from edge_sdk.example import Example
from edge_sdk.execution import ProductFormat
from edge_sdk.lean.architecture import read_architecture
from edge_sdk.lean.base import LeanBase
from edge_sdk.lean.frozen import FrozenMatrix, Nf4Matrix, PlainMatrix
from edge_sdk.lean.nf4 import quantize_nf4
from edge_sdk.lean.prepared import PreparedBase
from edge_sdk.lean.products import IntegerProducts, Operand
from edge_sdk.lean.workspace import Workspace
from edge_sdk.training import train_round
from edge_sdk.wire.messages import AdapterSpec, TrainingSpec
from edge_sdk.wire.payload import adapter_shapes

_LARGE = 512
_ROWS, _IN, _OUT = 32, 128, 64
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
    """Multiply integers once forward and backward, and check the numbers."""
    weight = torch.arange(_OUT * float(_IN)).sin().reshape(_OUT, _IN)
    held = Nf4Matrix(*quantize_nf4(weight), _OUT, _IN)
    exact = held.widen(torch.empty(_OUT, _IN))
    x = torch.linspace(-1, 1, _ROWS * _IN).reshape(_ROWS, _IN)
    g = torch.linspace(1, 2, _ROWS * _OUT).cos().reshape(_ROWS, _OUT)
    y, dx = torch.zeros(_ROWS, _OUT), torch.zeros(_ROWS, _IN)
    try:
        workspace = Workspace()
        products = IntegerProducts(workspace)
        products.add_forward(Operand(x, workspace), held, y)
        products.add_backward(g, held, dx)
        is_exact = _is_exact()
    except _FAILURES as error:
        return str(error).strip().split("\n", 1)[0] or type(error).__name__
    if not (is_exact and _agree(y, x @ exact.T) and _agree(dx, g @ exact)):
        return "they give wrong numbers"
    return None


def _is_exact() -> bool:
    """Multiply the largest integers: some kernels add them up in fewer bits than it takes."""
    left = torch.full((_ROWS, _IN), 127, dtype=torch.int8)
    right = torch.full((_OUT, _IN), -127, dtype=torch.int8)
    right[::2] = 127
    products = (torch._int_mm(left, right.T), torch._int_mm(right, left.T.contiguous()))
    expected = (left.int() @ right.int().T, right.int() @ left.int().T)
    return all(map(torch.equal, products, expected))


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
