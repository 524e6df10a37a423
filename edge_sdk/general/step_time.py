"""How long a step of the general trainer takes, from the model's configuration and rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from edge_sdk.compute.execution import Execution
from edge_sdk.compute.rates import Rates
from edge_sdk.general.memory_need import activation_bytes, adapter_parameters, kept_bytes
from edge_sdk.model.model_shape import ModelShape
from edge_sdk.wire.task import LayerSpec

FORWARD_TRAFFIC, BACKWARD_TRAFFIC = 3.0, 4.0
"""Bytes a block writes, in multiples of what it keeps for the backward pass; fitted."""
LOGITS_TRAFFIC = 20  # bytes written per logit: itself, log-probability, three gradients
OPTIMIZER_TRAFFIC = 32  # bytes of values, gradients and moments moved per trained number


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step by what they are spent on.

    Attributes:
        products: Matrix products with the frozen weights, the adapter and the output head, and
            what is done to logits between them.
        widening: Bringing quantized weights into the format of the products.
        elementwise: Everything that writes tensors without multiplying matrices.
        overhead: Starting operations, whatever their size.
        optimizer: Updating the trained numbers.
    """

    products: float
    widening: float
    elementwise: float
    overhead: float
    optimizer: float

    @property
    def total(self) -> float:
        """Sum of all."""
        return math.fsum(asdict(self).values())


def step_time(
    shape: ModelShape,
    layers: Sequence[LayerSpec],
    execution: Execution,
    *,
    batch_size: int,
    predicted: int,
    computes_in_bf16: bool,
    rates: Rates,
) -> StepTime:
    """Predict the time of one optimizer step.

    Args:
        shape: The base model.
        layers: Every adapted layer, trained or not.
        execution: How it is trained.
        batch_size: Examples per step.
        predicted: Places per sequence for which a causal LM computes logits.
        computes_in_bf16: Activations are bf16 unless the base is fp32.
        rates: Of the device.
    """
    compute = activation_bytes(execution.quantization, computes_in_bf16)
    trained = [x for x in layers if x.ending in execution.trained_targets]
    parts = math.ceil(batch_size / execution.micro_batch)
    rows = execution.micro_batch * execution.length
    tokens = batch_size * execution.length
    forwards = 2 if execution.recomputed_blocks else 1
    scores = batch_size * min(predicted, execution.length) * (not shape.dense)

    adapter = adapter_parameters(layers, execution.k)
    body = shape.linear_parameters + adapter
    attention = 2 * execution.length * shape.q_size * shape.num_layers
    flops = 2.0 * tokens * (body + attention) * (forwards + 1)
    flops += 2.0 * tokens * adapter_parameters(trained, execution.k)
    flops += 4.0 * scores * shape.hidden_size * shape.vocab_size
    kept = kept_bytes(shape, trained, execution, compute) * shape.num_layers * tokens
    written = kept * (FORWARD_TRAFFIC * forwards + BACKWARD_TRAFFIC)
    written += scores * shape.vocab_size * LOGITS_TRAFFIC
    numbers = adapter_parameters(trained, execution.k)
    numbers += sum(math.prod(spec.shape) for spec in shape.dense)
    passes = parts * (forwards + 1)
    return StepTime(
        products=flops / rates.flops_per_s(rows, compute == 2),
        widening=_widening(shape, execution, compute, rates) * passes,
        elementwise=written / rates.fresh_bytes_per_s,
        overhead=rates.block_overhead_s * shape.num_layers * parts * (forwards + 1) / 2,
        optimizer=numbers * OPTIMIZER_TRAFFIC / rates.fresh_bytes_per_s,
    )


def _widening(shape: ModelShape, execution: Execution, compute: int, rates: Rates) -> float:
    """Return the seconds of widening every frozen weight once."""
    if execution.quantization == "nf4":
        return shape.linear_parameters / (rates.nf4_elements_per_s or math.inf)
    if execution.quantization == "bf16" and compute == 4:
        return shape.linear_parameters * compute / rates.fresh_bytes_per_s
    return 0.0
