"""How fast a device computes, and what its libraries take: what the planner counts with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from edge_sdk.compute.execution import ProductFormat, Quantization
from edge_sdk.compute.lean_rates import LeanRates, assumed_lean_rates

Origin = Literal["measured", "assumed", "profile"]

_ASSUMED_FLOPS_PER_CORE = 40e9
_ASSUMED_FRESH_BYTES = 1.5e9
_ASSUMED_NF4_ELEMENTS = 0.3e9
_ASSUMED_BLOCK_S = 4e-3
_BF16_GAIN = 1.5  # over fp32, from which rounding activations to bf16 is worth it
_INT8_GAIN = 1.2  # over wide products, from which rounding both sides is worth it
_ASSUMED_INT8_GAIN = 2.0  # over fp32, where the instructions are there; data sheets say more
_PROCESS_BYTES = 405_000_000
_NF4_BYTES = 45_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Speed of the kernels that training uses, and memory of the libraries that hold them.

    Attributes:
        origin: Whether the numbers were measured here, assumed, or taken from a device profile.
        threads: CPU threads they hold for.
        fp32_flops_per_s: Matrix products forward and backward, many rows.
        bf16_flops_per_s: The same in bf16; 0 if unknown, and then taken to be that of fp32.
        half_rate_rows: Rows of a product at which half of that rate is reached.
        fresh_bytes_per_s: Writing tensors into memory the process has not touched yet.
        nf4_elements_per_s: Widening NF4 weights; 0 if that does not work here.
        block_overhead_s: One transformer block, forward and backward, apart from its numbers.
        process_bytes: Resident memory of the libraries after their first use.
        nf4_bytes: What bitsandbytes adds to that.
        lean: Of the hand-written passes; the others are those of the general trainer, too.
        unusable: Number formats the general trainer cannot use here, with the reason.
        measured_s: Seconds that measuring took, imports aside.
    """

    origin: Origin
    threads: int
    fp32_flops_per_s: float
    bf16_flops_per_s: float
    half_rate_rows: float
    fresh_bytes_per_s: float
    nf4_elements_per_s: float
    block_overhead_s: float
    process_bytes: int
    nf4_bytes: int
    lean: LeanRates
    unusable: dict[Quantization, str] = field(default_factory=dict)
    measured_s: float = 0.0

    def runtime_bytes(self, quantization: Quantization) -> int:
        """Return the memory of the libraries that a number format needs."""
        return self.process_bytes + (self.nf4_bytes if quantization == "nf4" else 0)

    def flops_per_s(self, rows: int, is_bf16: bool) -> float:
        """Return the rate of a matrix product with that many rows."""
        full = (self.bf16_flops_per_s if is_bf16 else 0.0) or self.fp32_flops_per_s
        return full * rows / (rows + self.half_rate_rows)

    def int8_flops_per_s(self, rows: int) -> float:
        """Return the rate of a product of integers with that many rows; 0 if there is none."""
        return self.lean.int8_flops_per_s * rows / (rows + self.half_rate_rows)

    def computes_in_bf16(self, has_native_bf16: bool) -> bool:
        """Say whether activations of this device are bf16, unless its base is fp32.

        Measured rates decide: some processors have the instructions and compute more slowly.

        Args:
            has_native_bf16: What the processor claims; it counts where nothing was measured.
        """
        if self.origin != "measured":
            return has_native_bf16
        return self.bf16_flops_per_s >= _BF16_GAIN * self.fp32_flops_per_s

    def product_formats(self, quantization: Quantization) -> tuple[ProductFormat, ...]:
        """Return the formats in which the hand-written passes can multiply such a base well."""
        is_fast = self.lean.int8_flops_per_s > _INT8_GAIN * self.fp32_flops_per_s
        return ("wide", "int8") if is_fast and quantization in ("nf4", "int8") else ("wide",)


def assumed_rates(cores: int) -> Rates:
    """Return cautious rates for a CPU nobody measured: plans say so."""
    return Rates(
        origin="assumed",
        threads=cores,
        fp32_flops_per_s=_ASSUMED_FLOPS_PER_CORE * cores,
        bf16_flops_per_s=_ASSUMED_FLOPS_PER_CORE * cores,
        half_rate_rows=20.0,
        fresh_bytes_per_s=_ASSUMED_FRESH_BYTES,
        nf4_elements_per_s=_ASSUMED_NF4_ELEMENTS,
        block_overhead_s=_ASSUMED_BLOCK_S,
        process_bytes=_PROCESS_BYTES,
        nf4_bytes=_NF4_BYTES,
        lean=assumed_lean_rates(cores),
    )


def profile_rates(
    fp32_flops_per_s: float,
    bf16_flops_per_s: float | None,
    memory_bandwidth_bytes_per_s: float,
    cores: int,
    usable: tuple[Quantization, ...],
    multiplies_int8: bool = False,
) -> Rates:
    """Return the rates of a device one does not hold, from its published numbers.

    What no data sheet says is scaled from this project's reference machine by the rate per core.

    Args:
        fp32_flops_per_s: Matrix products of all cores.
        bf16_flops_per_s: The same in bf16; None if unknown.
        memory_bandwidth_bytes_per_s: At most.
        cores: That compute.
        usable: Number formats that work in the general trainer.
        multiplies_int8: There are instructions for products of integers.
    """
    assumed = assumed_rates(cores)
    slowness = assumed.fp32_flops_per_s / fp32_flops_per_s
    unusable: dict[Quantization, str] = {
        x: "the profile says that its kernel does not work there"
        for x in ("nf4", "bf16", "fp32")
        if x not in usable
    }
    lean = replace(
        assumed_lean_rates(cores, slowness),
        int8_flops_per_s=_ASSUMED_INT8_GAIN * fp32_flops_per_s * multiplies_int8,
    )
    return Rates(
        origin="profile",
        threads=cores,
        fp32_flops_per_s=fp32_flops_per_s,
        bf16_flops_per_s=bf16_flops_per_s or 0.0,
        half_rate_rows=assumed.half_rate_rows,
        fresh_bytes_per_s=min(memory_bandwidth_bytes_per_s / 8, assumed.fresh_bytes_per_s),
        nf4_elements_per_s=assumed.nf4_elements_per_s / max(1.0, slowness),
        block_overhead_s=assumed.block_overhead_s * max(1.0, slowness),
        process_bytes=assumed.process_bytes,
        nf4_bytes=assumed.nf4_bytes,
        lean=lean,
        unusable=unusable,
    )
