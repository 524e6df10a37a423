"""Decide the largest sketch a device can afford; numbers in, decision out."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.errors import NotFeasible
from edge_sdk.memory import MemoryNeed, Quantization, memory_need
from edge_sdk.model_shape import ModelShape
from edge_sdk.quantities import format_bytes
from edge_sdk.sketch import check_sizes
from edge_sdk.wire.messages import LayerSpec

SHARE_OF_FREE_MEMORY = 0.7  # without a stated budget, the rest stays with the owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to be trained, apart from how many ranks.

    Attributes:
        shape: The base model.
        layers: Adapted layers.
        r: Global rank.
        quantization: Number format of the frozen base.
        compute_bytes: Bytes per number in activations.
        batch_size: Sequences per step.
        length: Tokens of the longest sequence.
        predicted: Places per sequence for which logits are computed.
    """

    shape: ModelShape
    layers: list[LayerSpec]
    r: int
    quantization: Quantization
    compute_bytes: int
    batch_size: int
    length: int
    predicted: int

    def need(self, k: int) -> MemoryNeed:
        """Return the peak memory of training ``k`` ranks."""
        return memory_need(
            self.shape,
            self.layers,
            k,
            quantization=self.quantization,
            compute_bytes=self.compute_bytes,
            batch_size=self.batch_size,
            length=self.length,
            predicted=self.predicted,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The decision and its reasons.

    Attributes:
        k: Largest sketch size that fits.
        r: Global rank.
        budget_bytes: Memory the plan may use.
        need: Predicted peak at ``k``, by component.
        next_k_bytes: Budget the next larger sketch needs; None at full rank.
        reason: What limits ``k``, for people.
    """

    k: int
    r: int
    budget_bytes: int
    need: MemoryNeed
    next_k_bytes: int | None
    reason: str


def memory_budget(available_bytes: int, stated_bytes: int | None) -> int:
    """Return the memory a plan may use: what was stated, but never more than is free.

    Args:
        available_bytes: Free memory now.
        stated_bytes: The owner's budget; None takes a share of what is free.
    """
    if stated_bytes is None:
        return int(available_bytes * SHARE_OF_FREE_MEMORY)
    return min(stated_bytes, available_bytes)


def make_plan(work: Workload, budget_bytes: int) -> Plan:
    """Choose the largest sketch whose predicted peak fits the budget.

    Raises:
        NotFeasible: Not even one rank fits; says how much is missing.
        SketchError: The global rank is below 1.
    """
    check_sizes(work.r, 1)
    k = max((k for k in range(1, work.r + 1) if work.need(k).total <= budget_bytes), default=0)
    if k == 0:
        smallest = work.need(1).total
        raise NotFeasible(
            f"training one rank needs about {format_bytes(smallest)}, the budget is "
            f"{format_bytes(budget_bytes)}: {format_bytes(smallest - budget_bytes)} short; "
            "a smaller batch, shorter sequences or a smaller base model would help",
            shortfall_bytes=smallest - budget_bytes,
        )
    is_full = k == work.r
    return Plan(
        k=k,
        r=work.r,
        budget_bytes=budget_bytes,
        need=work.need(k),
        next_k_bytes=None if is_full else work.need(k + 1).total,
        reason="the global rank fits" if is_full else "memory",
    )
