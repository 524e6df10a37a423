"""How long an optimizer step of the hand-written passes takes, from sizes and measured rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge_sdk.compute.execution import Execution
from edge_sdk.compute.rates import Rates
from edge_sdk.general.memory_need import activation_bytes, adapter_parameters
from edge_sdk.general.step_time import StepTime
from edge_sdk.lean.memory_need import outer_bytes, tokens_at_once
from edge_sdk.model.model_shape import ModelShape
from edge_sdk.wire.task import LayerSpec

LOSS_ROWS = 1024  # places that predict something, for which the head is widened once
LOGIT_TRAFFIC = 24  # bytes moved per logit between its two products
OPTIMIZER_TRAFFIC = 32  # bytes of values, gradients and moments moved per trained number
RANK_SHARE, RANK_HALF = 0.9, 20.0  # of the full rate, in products k wide: 0.9 k / (k + 20)
ATTENTION_SHARE, ATTENTION_HALF = 0.5, 170.0  # the same, by the tokens of an example
_ATTENTION_FORWARD, _ATTENTION_BACKWARD = 2, 5  # causal products of length x width


def lean_step_time(
    shape: ModelShape,
    layers: Sequence[LayerSpec],
    execution: Execution,
    *,
    batch_size: int,
    learned: int,
    computes_in_bf16: bool,
    rates: Rates,
) -> StepTime:
    """Predict the time of one optimizer step.

    Args:
        shape: The base model.
        layers: Every adapted layer, trained or not.
        execution: How it is trained.
        batch_size: Examples per step.
        learned: Tokens learned per example.
        computes_in_bf16: Activations are bf16 unless the base is fp32.
        rates: Of the device.
    """
    targets, k = execution.trained_targets, execution.k
    step = _Step(
        shape=shape,
        linear_numbers=shape.linear_parameters,
        every=adapter_parameters(layers, k),
        trained=adapter_parameters([x for x in layers if x.ending in targets], k),
        inputs=k * sum(layer.d_in for layer in layers),
        execution=execution,
        batch_size=batch_size,
        learned=learned,
        compute=activation_bytes(execution.quantization, computes_in_bf16),
        rates=rates,
    )
    return StepTime(
        products=step.body_s + step.attention_s + step.ranks_s + step.head_s,
        widening=step.decoding_s,
        elementwise=step.moved_bytes / rates.lean.moved_bytes_per_s,
        overhead=step.overhead_s,
        optimizer=step.trained * OPTIMIZER_TRAFFIC / rates.lean.moved_bytes_per_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """The parts of one step.

    Attributes:
        shape: The base model.
        linear_numbers: Weights of its linear layers.
        every: Numbers of the adapter, trained or not.
        trained: Those that are trained.
        inputs: Those of A alone.
        execution: How it is trained.
        batch_size: Examples per step.
        learned: Tokens learned per example.
        compute: Bytes per number in activations.
        rates: Of the device.
    """

    shape: ModelShape
    linear_numbers: int
    every: int
    trained: int
    inputs: int
    execution: Execution
    batch_size: int
    learned: int
    compute: int
    rates: Rates

    @property
    def body_s(self) -> float:
        """Products with the frozen weights: forward, backward, and forward again."""
        flops = 2.0 * self._tokens * self.linear_numbers * self._passes
        if self.execution.products == "int8":
            return flops / self.rates.int8_flops_per_s(self._rows)
        return flops / self._wide_rate(self._rows)

    @property
    def attention_s(self) -> float:
        """Queries with keys, and weights with values, each token with those before it."""
        length = self._length
        per_token = length * self.shape.q_size * self.shape.num_layers
        backward = _ATTENTION_BACKWARD + _ATTENTION_FORWARD * (self._passes - 1)
        rate = self._wide_rate(self._rows) * ATTENTION_SHARE * length / (length + ATTENTION_HALF)
        return self._tokens * per_token * backward / rate

    @property
    def ranks_s(self) -> float:
        """Products with the ranks: two each going forward, back and learning, x A^T once more."""
        k = self.execution.k
        flops = 2.0 * self._tokens * (self.every * self._passes + self.trained + self.inputs)
        return flops / (self._wide_rate(self._rows) * RANK_SHARE * k / (k + RANK_HALF))

    @property
    def head_s(self) -> float:
        """Logits and the gradient of what they came from."""
        labelled = self.batch_size * self._labelled
        flops = 4.0 * labelled * self._head_numbers
        rows = min(LOSS_ROWS, math.ceil(labelled / self._parts))
        traffic = labelled * self.shape.vocab_size * LOGIT_TRAFFIC
        moving = traffic / self.rates.lean.moved_bytes_per_s
        is_integer = self._has_integer_head
        rate = self.rates.int8_flops_per_s(rows) if is_integer else self._wide_rate(rows)
        return flops / rate + moving

    @property
    def decoding_s(self) -> float:
        """Every weight in every pass of every micro-batch, and the head once for its places."""
        lean, execution = self.rates.lean, self.execution
        per_number = lean.decoding_s(execution.quantization, execution.products, self.compute)
        body = self.linear_numbers * self._passes * self._parts * per_number
        chunks = math.ceil(self.batch_size * self._labelled / self._parts / LOSS_ROWS)
        head = self._head_numbers * chunks * self._parts
        outer = outer_bytes(execution)
        if self._has_integer_head or outer == self.compute:
            return body
        return body + head / (lean.int8_widened_per_s if outer == 1 else lean.bf16_widened_per_s)

    @property
    def moved_bytes(self) -> float:
        """Bytes read and written by everything that multiplies no matrices, in all blocks."""
        kept = 4 if self.execution.quantization == "fp32" else 2
        forward, backward = _moved_bytes(self.shape, self.compute, kept)
        per_token = forward * (self._passes - 1) + backward
        return per_token * self._tokens * self.shape.num_layers

    @property
    def overhead_s(self) -> float:
        """What starting operations takes, whatever their size."""
        lean, again = self.rates.lean, self._passes / 2
        starts = self._parts * lean.block_overhead_s + self.batch_size * lean.example_overhead_s
        return starts * self.shape.num_layers * again

    @property
    def _has_integer_head(self) -> bool:
        is_integer = self.execution.products == "int8" and self.rates.lean.multiplies_integers
        return is_integer and self.shape.vocab_size % 64 == self.shape.hidden_size % 64 == 0

    @property
    def _length(self) -> int:
        return max(1, self.execution.length - 1)

    @property
    def _labelled(self) -> int:
        """Places of one example that predict something."""
        return min(self.learned, self._length)

    @property
    def _tokens(self) -> int:
        return self.batch_size * self._length

    @property
    def _parts(self) -> int:
        return math.ceil(self.batch_size / self.execution.micro_batch)

    @property
    def _rows(self) -> int:
        return min(self._tokens, tokens_at_once(self.execution.micro_batch, self.execution.length))

    @property
    def _passes(self) -> float:
        """Passes through a block: forward, back, and forward again for some."""
        return 2 + self.execution.recomputed_blocks / self.shape.num_layers

    @property
    def _head_numbers(self) -> int:
        return self.shape.vocab_size * self.shape.hidden_size

    def _wide_rate(self, rows: int) -> float:
        return self.rates.flops_per_s(rows, self.compute == 2)


def _moved_bytes(shape: ModelShape, compute: int, kept: int) -> tuple[int, int]:
    """Return the bytes one token moves through one block, forward and backward.

    Args:
        shape: The base model.
        compute: Bytes per number in activations.
        kept: Bytes per number in what is kept.
    """
    d, q, kv, inner = shape.hidden_size, shape.q_size, shape.kv_size, shape.intermediate_size
    copied, doubled = compute + kept, 2 * compute
    projected, placed = q + 2 * kv, q + kv
    # two norms, the inputs of both halves kept
    forward = 2 * d * (doubled + copied)
    # outputs zeroed, kept, and read again as they were kept; turned by position; attended
    forward += projected * (compute + 2 * copied) + 2 * placed * doubled + q * (doubled + copied)
    # gate and up zeroed and kept; multiplied
    forward += inner * (2 * compute + 2 * copied + 3 * compute)
    # gate and up as they were kept; their gradients, for which the product was zeroed
    backward = inner * (2 * copied + 7 * compute)
    # two norms again, their inputs, a gradient zeroed, and added through the norm
    backward += 2 * d * (copied + doubled + compute + 2 * doubled)
    # what was kept, its gradient zeroed, placed again; gradients gathered and turned back
    backward += q * (copied + compute) + projected * copied + 2 * placed * doubled
    backward += 3 * q * doubled + placed * doubled
    return forward, backward
