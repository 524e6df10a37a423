"""How many bytes the general trainer needs for a model, from the model's configuration alone.

The peak is that of loading the base or that of a training step. The terms count tensors that are
alive at once, as PyTorch's autograd keeps them for the models of ``transformers``; that is the
resident memory of a process whose freed blocks go back to the system, see
:mod:`edge_sdk.memory.heap`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

from edge_sdk.compute.execution import Execution, Quantization
from edge_sdk.model.model_shape import FAMILIES, ModelShape
from edge_sdk.wire.task import LayerSpec

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, double-quantized scales of 64 and 256
WEIGHT_BYTES = {"nf4": NF4_BYTES, "int8": 1.0, "bf16": 2.0, "fp32": 4.0}
TRAINED_BYTES = 16  # per trained number in fp32: as received, value, two moments
GRADIENT_BYTES = 4
FROZEN_BYTES = 8  # per number that is not trained: as received, value
TOKENIZER_BYTES = 350  # per entry of the vocabulary
LOGITS_BYTES = 12  # per logit in fp32: log-probability, its gradient, the logit's gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Peak memory of the training process by component, in bytes.

    Attributes:
        runtime: Interpreter, imported libraries, a tokenizer in the same process.
        base: Frozen linear layers in their number format.
        embeddings: Embeddings and output head, never quantized.
        adapter: Ranks and dense parameters: as received, values, copies in bf16 where that is
            computed in, optimizer moments, and the gradients that are there when activations
            are at their most.
        activations: Kept from the forward to the backward pass.
        workspace: What one block is computed in, its largest layer in the format of products
            included.
        logits: Of the output head and the loss, as far as they exceed what is free by then.
        spike: What loading the base, or the end of a step or a round, needs beyond all that.
    """

    runtime: int
    base: int
    embeddings: int
    adapter: int
    activations: int
    workspace: int
    logits: int
    spike: int

    @property
    def total(self) -> int:
        """Sum of all components."""
        return sum(asdict(self).values())


def activation_bytes(quantization: Quantization, computes_in_bf16: bool) -> int:
    """Return the bytes per number in activations: bf16 only where that is fast."""
    return 2 if computes_in_bf16 and quantization != "fp32" else 4


def adapter_parameters(layers: Sequence[LayerSpec], k: int) -> int:
    """Return how many numbers a k-rank adapter on these layers has."""
    return k * sum(layer.d_in + layer.d_out for layer in layers)


def memory_need(
    shape: ModelShape,
    layers: Sequence[LayerSpec],
    execution: Execution,
    *,
    batch_size: int,
    predicted: int,
    computes_in_bf16: bool,
    runtime_bytes: int,
) -> MemoryNeed:
    """Predict the peak memory of training by the general trainer.

    Args:
        shape: The base model.
        layers: Every adapted layer, trained or not.
        execution: How it is trained.
        batch_size: Examples per step; more than one micro-batch keeps gradients in between.
        predicted: Places per sequence for which a causal LM computes logits.
        computes_in_bf16: Activations are bf16 unless the base is fp32.
        runtime_bytes: Resident memory of the libraries, before a model is loaded.
    """
    compute = activation_bytes(execution.quantization, computes_in_bf16)
    base, embeddings, loading = _held_weights(shape, execution.quantization, compute)
    trained = [x for x in layers if x.ending in execution.trained_targets]
    frozen = [x for x in layers if x.ending not in execution.trained_targets]
    dense = sum(math.prod(spec.shape) for spec in shape.dense)
    numbers = adapter_parameters(trained, execution.k) + dense
    passive = FROZEN_BYTES * adapter_parameters(frozen, execution.k)
    tokens = execution.micro_batch * execution.length
    kept = kept_bytes(shape, trained, execution, compute) * tokens
    boundary = shape.hidden_size * compute * tokens
    blocks = (
        boundary * (shape.num_layers - 1) + kept
        if execution.recomputed_blocks
        else (kept * shape.num_layers)
    )
    workspace = _workspace_bytes(shape, execution.quantization, compute, tokens)
    scores = execution.micro_batch * min(predicted, execution.length) * shape.vocab_size
    logits = scores * (LOGITS_BYTES + (2 if compute == 2 else 0)) * (not shape.dense)
    gradients = GRADIENT_BYTES * numbers
    held_gradients = gradients * (batch_size > execution.micro_batch)
    narrowed = 2 * adapter_parameters(layers, execution.k) if compute == 2 else 0
    adapter = TRAINED_BYTES * numbers + passive + held_gradients + narrowed
    transient = max(workspace, logits)
    step = max(blocks + boundary + transient, gradients - held_gradients)
    return MemoryNeed(
        runtime=runtime_bytes + TOKENIZER_BYTES * shape.vocab_size,
        base=base,
        embeddings=embeddings,
        adapter=adapter,
        activations=int(blocks + boundary),
        workspace=int(workspace),
        logits=int(max(0, logits - workspace)),
        spike=int(max(adapter + step, loading) - adapter - blocks - boundary - transient),
    )


def _held_weights(
    shape: ModelShape, quantization: Quantization, compute: int
) -> tuple[int, int, int]:
    """Return the bytes of linear layers, of embeddings, and what loading adds for a moment.

    Weights held in the format of the file are views of the mapped file; as long as there is
    one, all pages that were ever read stay.
    """
    linears, outside = shape.linear_parameters, shape.embedding_parameters
    stored = shape.file_number_bytes
    wide = WEIGHT_BYTES[quantization]
    is_linear_mapped, is_outside_mapped = wide == stored, compute == stored
    stays_mapped = is_linear_mapped or is_outside_mapped
    pages = stored if stays_mapped else 0
    base = linears * (pages + wide * (not is_linear_mapped))
    embeddings = outside * (pages + compute * (not is_outside_mapped))
    largest = max(layer.d_in * layer.d_out for layer in shape.linears)
    converting = 8 * largest * (quantization == "nf4")
    mapped = 0 if stays_mapped else stored * (linears + outside)
    return int(base), int(embeddings), mapped + converting


def kept_bytes(
    shape: ModelShape, trained: Collection[LayerSpec], execution: Execution, compute: int
) -> float:
    """Return what autograd keeps of one token in one block, in bytes.

    Examples computed together are taken to differ in length: hiding their padding costs a mask
    per block, and every query head its own copy of the keys and values. Left out are tensors of
    one number per token or head and those of the rotation: they are below one percent.

    Args:
        shape: The base model.
        trained: Layers that are trained; the inputs of the others are not kept.
        execution: How it is trained.
        compute: Bytes per number in activations.
    """
    d, inner = shape.hidden_size, shape.intermediate_size
    numbers = _kept_inputs(shape, trained) + execution.k * len(trained) / shape.num_layers
    if shape.is_encoder:
        mask = execution.length * (execution.micro_batch > 1)
        return compute * (numbers + 4 * d + mask + 2 * d + inner)
    norms = 4 if shape.model_type == "gemma2" else 2
    wide = norms * d  # RMSNorm keeps its input in fp32
    if shape.model_type == "qwen3":
        wide += shape.q_size + shape.kv_size  # so do those of queries and keys
    attention = _kept_attention_bytes(shape, execution, compute)
    return 4 * wide + attention + compute * (numbers + 3 * inner)


def _kept_inputs(shape: ModelShape, trained: Collection[LayerSpec]) -> float:
    """Return how many numbers of one token are kept in one block for the gradients of A alone."""
    d, q, inner = shape.hidden_size, shape.q_size, shape.intermediate_size
    endings = {layer.ending for layer in trained}
    if shape.is_encoder:  # one name for three layers; the attention's output is kept anyway
        return d * bool(endings & {"query", "key", "value"}) + (d + inner) * ("dense" in endings)
    if shape.model_type not in FAMILIES:  # what shares its input is not known
        return sum(layer.d_in for layer in trained) / shape.num_layers
    copies_attended = shape.model_type in ("phi3", "gemma2")
    return (
        d * bool(endings & {"q_proj", "k_proj", "v_proj", "qkv_proj"})
        + q * (copies_attended and "o_proj" in endings)
        + d * bool(endings & {"gate_proj", "up_proj", "gate_up_proj"})
        + inner * ("down_proj" in endings)
    )


def _kept_attention_bytes(shape: ModelShape, execution: Execution, compute: int) -> int:
    """Return what is kept of queries, keys, values and what the attention makes of them."""
    q, kv, length = shape.q_size, shape.kv_size, execution.length
    if shape.model_type == "gemma2":  # its capped scores are computed in the open
        scores = compute + 4 + (2 if compute == 2 else 0)  # capped, fp32 softmax, and narrowed
        return 3 * q * compute + scores * shape.num_heads * length
    is_padded = execution.micro_batch > 1
    keys = q if is_padded else kv
    values = q if is_padded else kv
    if shape.model_type == "phi3" and values == kv:
        values = q + 2 * kv  # a slice keeps the whole fused output
    return compute * (2 * q + keys + values + length * is_padded)


def _workspace_bytes(
    shape: ModelShape, quantization: Quantization, compute: int, tokens: int
) -> int:
    largest = max(layer.d_in * layer.d_out for layer in shape.linears)
    widened = 0 if quantization == "fp32" else largest * compute
    return widened + tokens * compute * (3 * shape.intermediate_size + 2 * shape.hidden_size)
