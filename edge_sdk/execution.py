"""How a device computes its local steps: what the planner may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantization = Literal["nf4", "bf16", "fp32"]
"""Number format of the frozen linear layers on the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One way to compute a task's local steps.

    Attributes:
        quantization: Number format of the frozen linear layers.
        micro_batch: Examples computed at once.
        checkpointing: Recompute each block in the backward pass instead of keeping it.
        length: Tokens of the longest example.
        trained_targets: Endings of the layer names that are trained.
        k: Sketch size.
    """

    quantization: Quantization
    micro_batch: int
    checkpointing: bool
    length: int
    trained_targets: tuple[str, ...]
    k: int
