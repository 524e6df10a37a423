"""How a device computes its local steps: what the planner may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantization = Literal["nf4", "int8", "bf16", "fp32"]
"""Number format of the frozen linear layers on the device."""

ProductFormat = Literal["wide", "int8"]
"""Format of the products with frozen weights; wide is that of the activations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One way to compute a task's local steps.

    Attributes:
        quantization: Number format of the frozen linear layers.
        products: Format of the products with frozen weights.
        micro_batch: Examples of full length computed at once.
        recomputed_blocks: Blocks that keep their input alone and are computed again going back.
        length: Tokens of the longest example.
        trained_targets: Endings of the layer names that are trained.
        k: Sketch size.
        computes_in_bf16: Activations are bf16: the CPU multiplies it fast, forward and back.
    """

    quantization: Quantization
    products: ProductFormat
    micro_batch: int
    recomputed_blocks: int
    length: int
    trained_targets: tuple[str, ...]
    k: int
    computes_in_bf16: bool = False
