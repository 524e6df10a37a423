"""What the tests of planning share: one model, one task and one machine, all in plain numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edge_sdk.compute.execution import Execution
from edge_sdk.compute.lean_rates import LeanRates
from edge_sdk.compute.rates import Rates
from edge_sdk.model.model_shape import ModelShape, read_shape
from edge_sdk.planning.cost import Machine, Workload

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "vocab_size": 30522,
    "dtype": "float32",
}
RATES = Rates(
    origin="measured",
    threads=2,
    fp32_flops_per_s=80e9,
    bf16_flops_per_s=60e9,
    half_rate_rows=20.0,
    fresh_bytes_per_s=1.5e9,
    nf4_elements_per_s=0.3e9,
    block_overhead_s=4e-3,
    process_bytes=400_000_000,
    nf4_bytes=50_000_000,
    lean=LeanRates(
        int8_flops_per_s=0.0,
        nf4_widened_per_s=4e9,
        nf4_to_int8_per_s=5e9,
        int8_widened_per_s=2e9,
        bf16_widened_per_s=3e9,
        moved_bytes_per_s=10e9,
        block_overhead_s=2e-3,
        example_overhead_s=0.25e-3,
        process_bytes=300_000_000,
        has_fused=True,
        multiplies_integers=True,
    ),
)
"""Of a processor whose products of integers are of no use."""
MACHINE = Machine(has_native_bf16=False, rates=RATES)
INTEGER_RATES = replace(RATES, lean=replace(RATES.lean, int8_flops_per_s=240e9))
INTEGER_MACHINE = Machine(has_native_bf16=False, rates=INTEGER_RATES)


def llama_shape(**changes: Any) -> ModelShape:
    """A model of the hand-written passes."""
    return read_shape({**LLAMA, **changes})


def generic_shape(**changes: Any) -> ModelShape:
    """A model of the same sizes that only the general trainer computes."""
    return read_shape({**LLAMA, "model_type": "smollm3", **changes})


def workload(shape: ModelShape | None = None, **changes: Any) -> Workload:
    """A task on a 135-million-parameter Llama; ``changes`` are fields of ``Workload``."""
    shape = shape or llama_shape()
    work = Workload(
        shape=shape,
        layers=tuple(shape.target_layers(shape.default_targets)),
        r=16,
        sketch_sizes=(1, 2, 4, 8, 16),
        quantizations=("nf4", "int8", "bf16", "fp32"),
        batch_size=8,
        local_steps=10,
        length=128,
        learned=16,
    )
    return replace(work, **changes)


def execution(shape: ModelShape, **changes: Any) -> Execution:
    """The whole batch at once in fp32; ``changes`` are fields of ``Execution``."""
    way = Execution(
        quantization="fp32",
        products="wide",
        micro_batch=8,
        recomputed_blocks=0,
        length=128,
        trained_targets=shape.default_targets,
        k=4,
    )
    return replace(way, **changes)
