"""What a way of training costs on a device: memory, time and transfer, with their margins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_sdk.compute.execution import Execution, Quantization
from edge_sdk.compute.rates import Rates
from edge_sdk.errors import ConfigError
from edge_sdk.general.memory_need import MemoryNeed, memory_need
from edge_sdk.general.step_time import StepTime, step_time
from edge_sdk.lean.memory_need import lean_memory_need, tokens_at_once
from edge_sdk.lean.step_time import lean_step_time
from edge_sdk.model.model_shape import ModelShape
from edge_sdk.sketch import check_sizes
from edge_sdk.wire.task import LayerSpec, UpdateEncoding
from edge_sdk.wire.update_body import update_data_bytes

MEMORY_MARGIN, CALIBRATED_MEMORY_MARGIN = 0.04, 0.02  # of the prediction, on top of it
GUARD_BYTES = 64_000_000  # a limit on address space must take gaps in the heap for used
TIME_MARGIN, CALIBRATED_TIME_MARGIN = 0.30, 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a task asks of a device, with the device's data.

    Attributes:
        shape: The base model.
        layers: Every adapted layer.
        r: Global rank.
        sketch_sizes: The task's ladder of k.
        quantizations: Number formats allowed for the frozen layers, the preferred one first.
        batch_size: Examples per optimizer step.
        local_steps: Optimizer steps per round.
        length: Tokens of the longest example.
        learned: Tokens of an example that are learned, at most.
        wire_bytes: Per number on the wire.
        update_encoding: Of what is sent; "wire" takes the same.
    """

    shape: ModelShape
    layers: tuple[LayerSpec, ...]
    r: int
    sketch_sizes: tuple[int, ...]
    quantizations: tuple[Quantization, ...]
    batch_size: int
    local_steps: int
    length: int
    learned: int
    wire_bytes: int = 4
    update_encoding: UpdateEncoding = "wire"

    def __post_init__(self) -> None:
        for k in self.sketch_sizes:
            check_sizes(self.r, k)
        for name in ("batch_size", "local_steps", "length", "learned"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.sketch_sizes or not self.quantizations:
            raise ConfigError("a plan needs at least one sketch size and one number format")


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What runs on this device taught about its predictions.

    Attributes:
        memory_bytes: Measured minus predicted peak memory.
        time_factor: Measured over predicted step time.
        runs: Measured runs; 0 means that nothing was measured yet.
    """

    memory_bytes: int = 0
    time_factor: float = 1.0
    runs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the planner knows about a device.

    Attributes:
        has_native_bf16: Its processor claims to multiply bf16 in hardware.
        rates: Its speed, and the memory of its libraries.
        corrections: From earlier runs of the same model, by number format.
    """

    has_native_bf16: bool
    rates: Rates
    corrections: Mapping[Quantization, Correction] = field(default_factory=dict)

    @property
    def computes_in_bf16(self) -> bool:
        """Activations are bf16 unless the base is fp32."""
        return self.rates.computes_in_bf16(self.has_native_bf16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one round may cost.

    Attributes:
        memory_bytes: Of the training process, libraries included.
        floor_bytes: Training pauses while the device has less memory free than this.
        round_s: From receiving the slice to having sent the update; None for no deadline.
        transfer_bytes: Both ways together; None for any number.
        uplink_bytes_per_s: Of the link to the server; None if unknown.
        downlink_bytes_per_s: From the server; None if unknown.
    """

    memory_bytes: int
    floor_bytes: int = 0
    round_s: float | None = None
    transfer_bytes: int | None = None
    uplink_bytes_per_s: float | None = None
    downlink_bytes_per_s: float | None = None

    def transfer_s(self, download_bytes: int, upload_bytes: int) -> float:
        """Return the seconds of moving so many bytes down, then up; 0 over unknown links."""
        ways = (
            (download_bytes, self.downlink_bytes_per_s),
            (upload_bytes, self.uplink_bytes_per_s),
        )
        return sum(size / link for size, link in ways if link is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one way of training costs, corrected by what was measured, margins included.

    Attributes:
        execution: The way.
        need: Predicted peak memory by component, uncorrected.
        step: Predicted time of an optimizer step, uncorrected.
        peak_bytes: Predicted peak memory.
        memory_bytes: The same with its margin: what a budget must hold.
        step_s: Predicted time of an optimizer step.
        round_s: All steps with their margin, and the transfers.
        transfer_bytes: Up and down together.
        is_calibrated: Whether earlier runs corrected the numbers.
    """

    execution: Execution
    need: MemoryNeed
    step: StepTime
    peak_bytes: int
    memory_bytes: int
    step_s: float
    round_s: float
    transfer_bytes: int
    is_calibrated: bool

    def limits(self, budget: Budget) -> list[str]:
        """Return the budgets this exceeds: of ``transfer``, ``memory`` and ``time``."""
        return [name for name, share in self._shares(budget).items() if share > 1]

    def excess(self, budget: Budget) -> float:
        """Return the largest share of a budget that this takes; above 1 it does not fit."""
        return max(self._shares(budget).values())

    def _shares(self, budget: Budget) -> dict[str, float]:
        wanted = {
            "transfer": (self.transfer_bytes, budget.transfer_bytes),
            "memory": (self.memory_bytes, budget.memory_bytes),
            "time": (self.round_s, budget.round_s),
        }
        return {
            name: cost / limit if limit else math.inf
            for name, (cost, limit) in wanted.items()
            if limit is not None
        }


def cost_of(work: Workload, machine: Machine, budget: Budget, execution: Execution) -> Cost:
    """Predict what one way of training costs."""
    correction = machine.corrections.get(execution.quantization, Correction())
    is_calibrated = correction.runs > 0
    need, step = _memory(work, machine, execution), _time(work, machine, execution)
    peak_bytes = max(0, need.total + correction.memory_bytes)
    step_s = step.total * correction.time_factor
    memory_margin = CALIBRATED_MEMORY_MARGIN if is_calibrated else MEMORY_MARGIN
    time_margin = CALIBRATED_TIME_MARGIN if is_calibrated else TIME_MARGIN
    download_bytes, upload_bytes = _transfer_bytes(work, execution.k)
    return Cost(
        execution=execution,
        need=need,
        step=step,
        peak_bytes=peak_bytes,
        memory_bytes=math.ceil(peak_bytes * (1 + memory_margin)) + GUARD_BYTES,
        step_s=step_s,
        round_s=work.local_steps * step_s * (1 + time_margin)
        + budget.transfer_s(download_bytes, upload_bytes),
        transfer_bytes=download_bytes + upload_bytes,
        is_calibrated=is_calibrated,
    )


def _transfer_bytes(work: Workload, k: int) -> tuple[int, int]:
    """Return the bytes of a slice and of an update, without their headers."""
    tensors = [(k, width) for layer in work.layers for width in (layer.d_in, layer.d_out)]
    tensors += [(1, math.prod(dense.shape)) for dense in work.shape.dense]
    return (
        update_data_bytes(tensors, "wire", work.wire_bytes),
        update_data_bytes(tensors, work.update_encoding, work.wire_bytes),
    )


def _memory(work: Workload, machine: Machine, execution: Execution) -> MemoryNeed:
    rates = machine.rates
    if not work.shape.is_lean:
        return memory_need(
            work.shape,
            work.layers,
            execution,
            batch_size=work.batch_size,
            predicted=_predicted(work, execution),
            computes_in_bf16=execution.computes_in_bf16,
            runtime_bytes=rates.runtime_bytes(execution.quantization),
        )
    tokens = tokens_at_once(execution.micro_batch, execution.length)
    return lean_memory_need(
        work.shape,
        work.layers,
        execution,
        # short examples that learn much may come together
        labelled=min(tokens, work.batch_size * work.learned),
        computes_in_bf16=execution.computes_in_bf16,
        rates=rates,
    )


def _time(work: Workload, machine: Machine, execution: Execution) -> StepTime:
    if not work.shape.is_lean:
        return step_time(
            work.shape,
            work.layers,
            execution,
            batch_size=work.batch_size,
            predicted=_predicted(work, execution),
            computes_in_bf16=execution.computes_in_bf16,
            rates=machine.rates,
        )
    return lean_step_time(
        work.shape,
        work.layers,
        execution,
        batch_size=work.batch_size,
        learned=work.learned,
        computes_in_bf16=execution.computes_in_bf16,
        rates=machine.rates,
    )


def _predicted(work: Workload, execution: Execution) -> int:
    """Return the places per sequence with logits: where any example of the batch learns."""
    return min(execution.length, execution.micro_batch * work.learned)
