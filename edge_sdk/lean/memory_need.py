"""How many bytes the hand-written passes need, from the model's configuration alone.

All they work in are the named buffers of a workspace, which are allocated once and kept: the peak
is their sum, and what single operations allocate on top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from edge_sdk.compute.execution import Execution, Quantization
from edge_sdk.compute.rates import Rates
from edge_sdk.general.memory_need import MemoryNeed, activation_bytes, adapter_parameters
from edge_sdk.model.model_shape import ModelShape
from edge_sdk.wire.task import LayerSpec

TRAINED_BYTES = 20  # per trained number: as received, value, gradient, two moments
FROZEN_BYTES = 8  # per number that is not trained: as received, value
UPDATE_BYTES = 8  # per number, at the end of a round: its last value, its update
_NF4_BLOCK = 64  # weights that share a magnitude in fp32
_LOSS_ROWS, _LOSS_BLOCK = 1024, 4096  # positions, and rows of the head, that are worked on at once
_INTEGER_LOSS_BLOCK = 1024
_QUERIES = 6  # that attention computes together
_GROUP = 128  # numbers of a row of activations that share a scale
_PANEL = 64  # columns of a product of integers that a thread computes together
_PLAIN_TEMPORARIES = 5  # of the gate's size, where its gradient is not computed in one pass
_COMPARED = 6  # tensors of a layer's size while two formats of its product are compared
_COMPARED_TOKENS = 96
_INPUT_OF = {
    "q_proj": "queries",
    "k_proj": "queries",
    "v_proj": "queries",
    "gate_proj": "gates",
    "up_proj": "gates",
}


def tokens_at_once(micro_batch: int, length: int) -> int:
    """Return the tokens of a packed batch, at most: the last of an example predicts nothing."""
    return micro_batch * max(1, length - 1)


def lean_memory_need(
    shape: ModelShape,
    layers: Sequence[LayerSpec],
    execution: Execution,
    *,
    labelled: int,
    computes_in_bf16: bool,
    rates: Rates,
) -> MemoryNeed:
    """Predict the peak memory of training by the hand-written passes.

    Args:
        shape: The base model.
        layers: Every adapted layer, trained or not.
        execution: How it is trained.
        labelled: Places of a batch that predict something, at most.
        computes_in_bf16: Activations are bf16 unless the base is fp32.
        rates: Of the device: the memory of its process, and which kernels it has.
    """
    passes = Passes(
        shape=shape,
        layers=tuple(layers),
        execution=execution,
        tokens=tokens_at_once(execution.micro_batch, execution.length),
        labelled=labelled,
        wide=activation_bytes(execution.quantization, computes_in_bf16),
        threads=rates.threads,
        has_fused=rates.lean.has_fused,
        multiplies_integers=rates.lean.multiplies_integers,
    )
    trained = [x for x in layers if x.ending in execution.trained_targets]
    every = adapter_parameters(layers, execution.k)
    numbers = adapter_parameters(trained, execution.k)
    # ranks in the format of the activations, and B turned the other way round
    turned = execution.k * sum(layer.d_out for layer in layers)
    narrowed = 2 * every if passes.wide == 2 else 4 * turned
    adapter = TRAINED_BYTES * numbers + FROZEN_BYTES * (every - numbers) + narrowed
    need = MemoryNeed(
        runtime=rates.lean.process_bytes,
        base=base_bytes(shape, execution.quantization),
        embeddings=embedding_bytes(shape, execution),
        adapter=adapter,
        activations=passes.kept_bytes + passes.statistics_bytes,
        workspace=passes.passing_bytes + passes.transient_bytes,
        logits=passes.loss_bytes,
        spike=0,
    )
    # at the end of a round the moments are gone
    at_end = UPDATE_BYTES * (every - numbers) - passes.transient_bytes
    return replace(need, spike=max(0, at_end, _comparing_bytes(passes, numbers)))


def base_bytes(shape: ModelShape, quantization: Quantization) -> int:
    """Return the bytes of the linear layers inside the blocks, and of the norms."""
    norms = 4 * shape.hidden_size * (2 * shape.num_layers + 1)
    sizes = {"bf16": 2, "fp32": 4}
    if quantization in sizes:
        return norms + sizes[quantization] * shape.linear_parameters
    if quantization == "int8":
        return norms + sum(layer.d_out * (layer.d_in + 4) for layer in shape.linears)
    numbers = [layer.d_in * layer.d_out for layer in shape.linears]
    return norms + sum(-(-n // 2) + 4 * -(-n // _NF4_BLOCK) for n in numbers)


def embedding_bytes(shape: ModelShape, execution: Execution) -> int:
    """Return the bytes of the embedding and an untied output head."""
    numbers = shape.embedding_parameters
    scales = 4 * numbers // shape.hidden_size if execution.products == "int8" else 0
    return outer_bytes(execution) * numbers + scales


def outer_bytes(execution: Execution) -> int:
    """Return the bytes per number of the embedding and the output head, scales aside."""
    if execution.products == "int8":
        return 1
    return 4 if execution.quantization == "fp32" else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """What one forward and one backward pass work in.

    Attributes:
        shape: The base model.
        layers: Every adapted layer, trained or not, in the model's order.
        execution: How it is trained.
        tokens: Of a packed batch, at most.
        labelled: Places of them that predict something, at most.
        wide: Bytes per number in activations.
        threads: CPU threads.
        has_fused: The compiled kernels are there.
        multiplies_integers: They also multiply integers, without a copy of the weight.
    """

    shape: ModelShape
    layers: tuple[LayerSpec, ...]
    execution: Execution
    tokens: int
    labelled: int
    wide: int
    threads: int
    has_fused: bool
    multiplies_integers: bool

    @property
    def workspace_bytes(self) -> int:
        """All named buffers."""
        return self.kept_bytes + self.passing_bytes + self.loss_bytes

    @property
    def kept_bytes(self) -> int:
        """What is kept from the forward to the backward pass.

        Every trained block keeps its input; and those that are not passed again what
        :meth:`kept_numbers` counts, in buffers of their own.
        """
        inputs = self._trained_blocks * self.shape.hidden_size
        return self._kept * self.tokens * (inputs + self._held_blocks * self.kept_numbers)

    @property
    def kept_numbers(self) -> int:
        """Numbers one token keeps in one block, its input aside."""
        shape = self.shape
        attention = 2 * shape.q_size + 2 * shape.kv_size
        return shape.hidden_size + attention + 2 * shape.intermediate_size

    @property
    def statistics_bytes(self) -> int:
        """Log-sum-exp of the scores, of each token, head and block; outside the workspace."""
        return 4 * self.tokens * self.shape.num_heads * self._held_blocks

    @property
    def passing_bytes(self) -> int:
        """What every block uses again."""
        return self._activation_bytes + self._product_bytes + self._attention_bytes

    @property
    def _attention_bytes(self) -> int:
        """Keys and values of an example laid across, and some scores, for every thread."""
        size = self.shape.q_size // self.shape.num_heads
        if not self.multiplies_integers or size % _PANEL or self.wide != 4:
            return 0
        padded = -(-max(1, self.execution.length - 1) // _PANEL) * _PANEL
        return self.threads * 4 * padded * 2 * (size + _QUERIES)

    @property
    def loss_bytes(self) -> int:
        """What the output head and the loss work in."""
        d, wide = self.shape.hidden_size, self.wide
        rows = min(self.labelled, _LOSS_ROWS)
        chosen = 3 * self.labelled * d * wide
        summed, targets = 4 * rows * d, wide * rows * d
        if self.has_integer_head:
            block = min(_INTEGER_LOSS_BLOCK, self.shape.vocab_size)
            return chosen + summed + targets + 4 * rows * block + rows * (d + 8 * _groups(d))
        block = min(_LOSS_BLOCK, self.shape.vocab_size)
        is_narrow = wide == 2
        head = block * d * wide * (outer_bytes(self.execution) != wide)
        scratch = 4 * rows * (max(block, d) if is_narrow else block)
        narrow = 2 * rows * (block + d) * is_narrow
        return chosen + summed + targets + head + scratch + narrow

    @property
    def has_integer_head(self) -> bool:
        """Whether the output head is multiplied in integers, too."""
        is_whole = self.shape.vocab_size % _PANEL == 0 and self.shape.hidden_size % _PANEL == 0
        return self.execution.products == "int8" and self.multiplies_integers and is_whole

    @property
    def transient_bytes(self) -> int:
        """What single operations allocate and free; the largest of them."""
        shape, outer = self.shape, outer_bytes(self.execution)
        longest = max(1, self.execution.length - 1)
        attention = 3 * longest * shape.q_size * self.wide  # keys spread over the query heads
        converted = outer if outer != self.wide else 0
        if outer == 1:
            converted = self.wide  # before its scale is multiplied in
        rows = self.tokens * shape.hidden_size * (self.wide + converted)
        is_plain = self.wide == 2 or not self.has_fused
        gate = _PLAIN_TEMPORARIES * self.tokens * shape.intermediate_size * self.wide
        return max(attention, rows, gate * is_plain)

    @property
    def _kept(self) -> int:
        """Bytes per number of what is kept."""
        return 4 if self.execution.quantization == "fp32" else 2

    @property
    def _first(self) -> int:
        """The lowest block with a trained layer; those below keep nothing."""
        targets = self.execution.trained_targets
        return _block_of(next(x for x in self.layers if x.ending in targets))

    @property
    def _trained_blocks(self) -> int:
        return self.shape.num_layers - self._first

    @property
    def _held_blocks(self) -> int:
        """Blocks with buffers of their own, and one set that all the others share."""
        shared = self._first + self.execution.recomputed_blocks
        return max(0, self.shape.num_layers - shared) + (shared > 0)

    @property
    def _activation_bytes(self) -> int:
        """Activations and gradients on their way through a block."""
        shape, tokens = self.shape, self.tokens
        d, q, kv, inner = shape.hidden_size, shape.q_size, shape.kv_size, shape.intermediate_size
        # stream, its gradient, normed, its gradient; input and second input where kept narrow
        streams = 4 + 2 * (self._kept != self.wide)
        # as projected, placed, their gradients; the attention's output and its gradient
        attention = 5 * q + 5 * kv
        heads = shape.num_heads if shape.model_type == "qwen3" else 1
        inverse = max(self.labelled, tokens * heads)
        ranks = 2 * self.execution.k * self._widest_group
        numbers = tokens * (streams * d + attention + 3 * inner + ranks) + inverse
        return self.wide * numbers

    @property
    def _widest_group(self) -> int:
        """Adapted layers that share an input, at most; all blocks are adapted alike."""
        block = _block_of(self.layers[0])
        alike = takewhile(lambda layer: _block_of(layer) == block, self.layers)
        return max(Counter(_INPUT_OF.get(x.ending, x.ending) for x in alike).values())

    @property
    def _product_bytes(self) -> int:
        """One weight in the format of its product, and the integers of activations.

        With products of integers some layers are taken to keep wide ones.
        """
        quantization, shape = self.execution.quantization, self.shape
        linears = shape.linears[: len(shape.linears) // shape.num_layers]
        largest = max(layer.d_in * layer.d_out for layer in linears)
        is_held_wide = (quantization, self.wide) in (("fp32", 4), ("bf16", 2))
        weight = 0 if is_held_wide else largest * self.wide
        if self.execution.products == "wide":
            return weight
        copied = [x for x in linears if not self._is_whole(x)]
        if copied and quantization != "int8":
            size = max(x.d_in * x.d_out for x in copied)
            weight = max(weight, 4 * size) + size
        result = 4 * self.tokens * max((_side(x) for x in copied), default=0)
        side = max(map(_side, linears))
        integers = max(self.tokens * side, self._head_factors)
        scales = 8 * max(self.tokens * _groups(side), self._head_factors // _GROUP)
        return weight + result + integers + scales + self._panel_bytes(linears)

    @property
    def _head_factors(self) -> int:
        """Numbers of one block of logits, whose gradient is multiplied in integers."""
        block = min(_INTEGER_LOSS_BLOCK, self.shape.vocab_size)
        return min(self.labelled, _LOSS_ROWS) * block * self.has_integer_head

    def _panel_bytes(self, linears: Sequence[LayerSpec]) -> int:
        """Return what the threads lay weights out in for products without a copy."""
        sides = [_side(layer) for layer in linears if self._is_whole(layer)]
        if self.has_integer_head:
            block = min(_INTEGER_LOSS_BLOCK, self.shape.vocab_size)
            sides.append(max(block, self.shape.hidden_size))
        return self.threads * _PANEL * max(sides, default=0)

    def _is_whole(self, layer: LayerSpec) -> bool:
        """Tell whether a layer is multiplied in integers without a copy of its weight."""
        return self.multiplies_integers and layer.d_in % _PANEL == layer.d_out % _PANEL == 0


def _side(layer: LayerSpec) -> int:
    return max(layer.d_in, layer.d_out)


def _block_of(layer: LayerSpec) -> int:
    return int(layer.name.split(".")[2])


def _comparing_bytes(passes: Passes, numbers: int) -> int:
    """Return what comparing products on a few tokens takes beyond a step, without moments yet.

    Every block is computed again, and the head is tried in both formats.
    """
    if passes.execution.products == "wide":
        return 0
    shape, tokens = passes.shape, _COMPARED_TOKENS
    way = replace(passes.execution, recomputed_blocks=shape.num_layers)
    comparing = replace(passes, execution=way, tokens=tokens, labelled=tokens)
    wide_head = replace(comparing, multiplies_integers=False).loss_bytes
    compared = _COMPARED * tokens * shape.intermediate_size * passes.wide
    held = comparing.workspace_bytes + comparing.statistics_bytes + wide_head + compared
    step = passes.workspace_bytes + passes.statistics_bytes + passes.transient_bytes
    return held - step - 8 * numbers


def _groups(size: int) -> int:
    return -(-size // _GROUP)
