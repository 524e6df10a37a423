"""How fast a device computes, and what its libraries take: what the planner counts with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edge_sdk.execution import Quantization

Origin = Literal["measured", "assumed", "profile"]

_ASSUMED_FLOPS_PER_CORE = 40e9
_ASSUMED_FRESH_BYTES = 1.5e9
_ASSUMED_NF4_ELEMENTS = 0.3e9
_ASSUMED_BLOCK_S = 4e-3
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
        unusable: Number formats whose kernel fails here, with the reason.
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
    unusable: dict[Quantization, str] = field(default_factory=dict)
    measured_s: float = 0.0

    def runtime_bytes(self, quantization: Quantization) -> int:
        """Return the memory of the libraries that a number format needs."""
        return self.process_bytes + (self.nf4_bytes if quantization == "nf4" else 0)

    def flops_per_s(self, rows: int, is_bf16: bool) -> float:
        """Return the rate of a matrix product with that many rows."""
        full = (self.bf16_flops_per_s if is_bf16 else 0.0) or self.fp32_flops_per_s
        return full * rows / (rows + self.half_rate_rows)


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
    )


def profile_rates(
    fp32_flops_per_s: float,
    bf16_flops_per_s: float | None,
    memory_bandwidth_bytes_per_s: float,
    cores: int,
    usable: tuple[Quantization, ...],
) -> Rates:
    """Return the rates of a device one does not hold, from its published numbers.

    What no data sheet says is scaled from this project's reference machine by the rate per core.
    """
    assumed = assumed_rates(cores)
    slowness = assumed.fp32_flops_per_s / fp32_flops_per_s
    unusable: dict[Quantization, str] = {
        x: "the profile says that its kernel does not work there"
        for x in ("nf4", "bf16", "fp32")
        if x not in usable
    }
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
        unusable=unusable,
    )
