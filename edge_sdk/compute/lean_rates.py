"""How fast the hand-written passes compute on a device, and what their process takes."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.compute.execution import ProductFormat, Quantization

_ASSUMED_WIDENED = 0.8e9  # per core
_ASSUMED_MOVED_BYTES = 4e9
_ASSUMED_BLOCK_S = 2e-3
_ASSUMED_EXAMPLE_S = 0.2e-3
_PROCESS_BYTES = 250_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LeanRates:
    """Speed of the kernels of the hand-written passes, and memory of their process.

    Attributes:
        int8_flops_per_s: Products of integers forward and backward, turning activations to
            integers included, many rows; 0 if they give wrong numbers or do not work here.
        nf4_widened_per_s: NF4 weights brought into the format of activations, in numbers.
        nf4_to_int8_per_s: NF4 weights turned to integers within a product.
        int8_widened_per_s: Integer weights brought into the format of activations.
        bf16_widened_per_s: The same of bf16 weights, where activations are fp32.
        moved_bytes_per_s: Reading and writing memory that is in use already.
        block_overhead_s: One block, forward and backward, apart from its numbers.
        example_overhead_s: One example more in a block, apart from its numbers.
        process_bytes: Resident memory of the libraries after their first use.
        has_fused: The compiled kernels are there.
        multiplies_integers: They also multiply integers here, without a copy of the weight.
    """

    int8_flops_per_s: float
    nf4_widened_per_s: float
    nf4_to_int8_per_s: float
    int8_widened_per_s: float
    bf16_widened_per_s: float
    moved_bytes_per_s: float
    block_overhead_s: float
    example_overhead_s: float
    process_bytes: int
    has_fused: bool
    multiplies_integers: bool

    def decoding_s(
        self, quantization: Quantization, products: ProductFormat, compute: int
    ) -> float:
        """Return the seconds to bring one frozen weight into the format of its product.

        Args:
            quantization: Number format of the weight.
            products: Format of the product.
            compute: Bytes per number in activations.
        """
        if products == "int8":
            return 1 / self.nf4_to_int8_per_s if quantization == "nf4" else 0.0
        if quantization == "nf4":
            return 1 / self.nf4_widened_per_s
        if quantization == "int8":
            return 1 / self.int8_widened_per_s
        return 1 / self.bf16_widened_per_s if (quantization, compute) == ("bf16", 4) else 0.0


def assumed_lean_rates(cores: int, slowness: float = 1.0) -> LeanRates:
    """Return cautious rates for a CPU nobody measured.

    Args:
        cores: CPU cores that compute.
        slowness: How many times slower a core is than the one assumed.
    """
    per_s = cores / max(1.0, slowness)
    return LeanRates(
        int8_flops_per_s=0.0,
        nf4_widened_per_s=_ASSUMED_WIDENED * per_s,
        nf4_to_int8_per_s=_ASSUMED_WIDENED * per_s,
        int8_widened_per_s=_ASSUMED_WIDENED * per_s,
        bf16_widened_per_s=_ASSUMED_WIDENED * per_s,
        moved_bytes_per_s=_ASSUMED_MOVED_BYTES / max(1.0, slowness),
        block_overhead_s=_ASSUMED_BLOCK_S * max(1.0, slowness),
        example_overhead_s=_ASSUMED_EXAMPLE_S * max(1.0, slowness),
        process_bytes=_PROCESS_BYTES,
        has_fused=True,
        multiplies_integers=True,
    )
