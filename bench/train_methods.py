"""The ways to train that are compared, and the work all of them get; imports no library of any.

A method names the module that builds it. The module has two functions:

``import_libraries(method, work)``
    Imports all that the method needs, so that its memory is known before there is a model.
``build(method, work, threads) -> Trainer``
    Loads the base and sets up adapters and optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.base_models import base_folder
from edge_sdk.model.model_folder import read_model_shape
from edge_sdk.model.model_shape import ModelShape
from edge_sdk.wire.payload import Arrays, adapter_shapes
from edge_sdk.wire.task import AdapterSpec

Held = Literal["nf4", "int8", "bf16", "fp32"]
Products = Literal["fp32", "bf16", "int8", "fastest"]

GLOBAL_RANK = 64
LORA_ALPHA = 16.0
LEARNING_RATE = 1e-4
_PEFT, _OURS = "bench.peft_methods", "bench.lean_methods"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is trained: random tokens, the same for every method, all of them learned.

    Attributes:
        model: One of ``bench.base_models.NAMES``.
        k: Ranks of the adapter, on every linear layer of every block.
        batch_size: Examples per step.
        length: Tokens per example.
    """

    model: str
    k: int
    batch_size: int
    length: int

    @property
    def folder(self) -> Path:
        """Folder of the base model."""
        return base_folder(self.model)

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.batch_size * self.length

    @property
    def learned(self) -> int:
        """Tokens per step that are predicted: all but the first of each example."""
        return self.batch_size * (self.length - 1)

    @property
    def shape(self) -> ModelShape:
        """Sizes of the base model."""
        return read_model_shape(self.folder, "CAUSAL_LM", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to train.

    Attributes:
        name: For the tables.
        module: Builds it.
        held: Number format of the frozen linear layers.
        products: Number format that is multiplied in; ``fastest`` leaves it to the method.
        checkpointing: Blocks are recomputed in the backward pass.
        is_prepared: The base goes through ``prepare_model_for_kbit_training``; PEFT only.
        tokens_at_once: Tokens of a micro-batch; 0 means the whole batch. Ours only.
    """

    name: str
    module: str
    held: Held
    products: Products = "fastest"
    checkpointing: bool = False
    is_prepared: bool = False
    tokens_at_once: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """A method that is loaded and ready.

    Attributes:
        step: Takes one optimizer step; returns the loss before it.
        parts_s: Seconds of the latest step by part, if the method tells; ``step`` fills it.
    """

    step: Callable[[], float]
    parts_s: dict[str, float] = field(default_factory=dict)


SMOLLM2 = Work(model="smollm2", k=16, batch_size=4, length=256)
QWEN = Work(model="qwen2.5-0.5b", k=8, batch_size=2, length=256)

TEXTBOOK = Method(
    name="textbook QLoRA", module=_PEFT, held="nf4", checkpointing=True, is_prepared=True
)
PEFT_NF4 = Method(name="PEFT nf4, unprepared", module=_PEFT, held="nf4")
PEFT_BF16 = Method(name="PEFT bf16, tuned", module=_PEFT, held="bf16", products="bf16")
PEFT_FP32 = Method(name="PEFT fp32, tuned", module=_PEFT, held="fp32", products="fp32")

OURS_BF16 = Method(name="ours bf16", module=_OURS, held="bf16")
OURS_NF4 = Method(name="ours nf4", module=_OURS, held="nf4")
OURS_INT8 = Method(name="ours int8", module=_OURS, held="int8", products="int8", tokens_at_once=512)
OURS_LEAN = Method(name="ours nf4, int8 products", module=_OURS, held="nf4", products="int8")
OURS_TIGHT = replace(OURS_LEAN, name="ours tight", tokens_at_once=256, checkpointing=True)
OURS = (OURS_LEAN, OURS_INT8, OURS_NF4, OURS_BF16)


def baselines(products: Products) -> tuple[Method, ...]:
    """Return what a user would pick instead.

    Args:
        products: What the 4-bit ones multiply in: whichever was measured to be faster here.
    """
    four_bit = (replace(method, products=products) for method in (TEXTBOOK, PEFT_NF4))
    return (*four_bit, PEFT_BF16, PEFT_FP32)


def token_ids(work: Work) -> NDArray[np.int64]:
    """Return the ids every method trains on, ``(batch_size, length)``."""
    rng = np.random.default_rng(0)
    return rng.integers(1, work.shape.vocab_size, (work.batch_size, work.length))


def adapter_of(work: Work) -> AdapterSpec:
    """Return an adapter on every linear layer; its scaling at k ranks is ``LORA_ALPHA / k``."""
    shape = work.shape
    return AdapterSpec(
        r=GLOBAL_RANK,
        lora_alpha=LORA_ALPHA,
        target_modules=list(shape.default_targets),
        layers=shape.target_layers(shape.default_targets),
    )


def first_ranks(work: Work) -> Arrays:
    """Return the values every method's adapter starts with: small, and in B not zero."""
    rng = np.random.default_rng(1)
    sizes: dict[str, Any] = dict(adapter_shapes(adapter_of(work), work.k))
    return {
        name: (0.01 * rng.standard_normal(size)).astype(np.float32) for name, size in sizes.items()
    }
