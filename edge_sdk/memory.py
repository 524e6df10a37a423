"""How many bytes a model and a training plan need, from shapes alone.

The terms are those of LoRA on a frozen base in PyTorch. The constants were fitted to peak
resident memory measured on the CPU; see ``docs/planning.md`` for the measurements.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

from edge_sdk.model_shape import ModelShape
from edge_sdk.wire.messages import LayerSpec

Quantization = Literal["nf4", "bf16", "fp32"]
"""Number format of the frozen linear layers on the device."""

WEIGHT_BYTES = {"nf4": 0.53, "bf16": 2.0, "fp32": 4.0}  # nf4: 4 bits and double-quantized scales
RUNTIME_BYTES = 450_000_000  # torch, transformers and bitsandbytes imported, and their threads
TRAINED_BYTES = 28  # in fp32: value, gradient, two moments of AdamW; before, after, update
ALLOCATOR_SLACK = 0.40  # freed tensors of many sizes leave gaps that grow over the steps
FILE_BYTES = 2  # a weight in the model's files, which are mapped while they are read


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Peak memory of the training process by component, in bytes.

    Attributes:
        runtime: Interpreter and imported libraries.
        base: Frozen linear layers in their number format.
        embeddings: Embeddings and output head, never quantized.
        workspace: Largest layer, widened for one multiplication, and its gradient's.
        activations: Kept from forward to backward.
        logits: Output scores and their gradient.
        adapter: Trained ranks and dense parameters: values, gradients, optimizer moments.
        slack: What the allocator keeps beyond that.
        loading: What loading the base needs beyond all of the above; 0 if training needs more.
    """

    runtime: int
    base: int
    embeddings: int
    workspace: int
    activations: int
    logits: int
    adapter: int
    slack: int
    loading: int

    @property
    def total(self) -> int:
        """Sum of all components."""
        return sum(asdict(self).values())


def activation_bytes(quantization: Quantization, has_native_bf16: bool) -> int:
    """Return the bytes per number in activations: bf16 only where the hardware multiplies it."""
    return 2 if has_native_bf16 and quantization != "fp32" else 4


def adapter_parameters(layers: list[LayerSpec], k: int) -> int:
    """Return how many numbers a k-rank adapter on these layers has."""
    return k * sum(layer.d_in + layer.d_out for layer in layers)


def memory_need(
    shape: ModelShape,
    layers: list[LayerSpec],
    k: int,
    *,
    quantization: Quantization,
    compute_bytes: int,
    batch_size: int,
    length: int,
    predicted: int,
) -> MemoryNeed:
    """Estimate the peak memory of training ``k`` ranks.

    Args:
        shape: The base model.
        layers: Adapted layers.
        k: Sketch size.
        quantization: Number format of the frozen linear layers.
        compute_bytes: Bytes per number in activations, see :func:`activation_bytes`.
        batch_size: Sequences per step.
        length: Tokens of the longest sequence.
        predicted: Places per sequence for which logits are computed.
    """
    tokens = batch_size * length
    per_token_and_layer = 20 * shape.hidden_size + 6 * shape.intermediate_size + 4 * shape.kv_size
    largest = max(layer.d_in * layer.d_out for layer in shape.linears)
    dense = sum(math.prod(spec.shape) for spec in shape.dense)
    is_causal = not shape.dense
    held_bytes = 4 if quantization == "fp32" else compute_bytes
    terms = {
        "runtime": RUNTIME_BYTES,
        "base": int(shape.linear_parameters * WEIGHT_BYTES[quantization]),
        "embeddings": shape.embedding_parameters * held_bytes,
        "workspace": 2 * largest * compute_bytes if quantization != "fp32" else 0,
        "activations": tokens * shape.num_layers * per_token_and_layer * compute_bytes,
        "logits": batch_size * predicted * shape.vocab_size * (compute_bytes + 8) * is_causal,
        "adapter": (adapter_parameters(layers, k) + dense) * TRAINED_BYTES,
    }
    terms["slack"] = int((sum(terms.values()) - RUNTIME_BYTES) * ALLOCATOR_SLACK)
    loading = RUNTIME_BYTES + _loading_bytes(shape, quantization, held_bytes)
    return MemoryNeed(**terms, loading=max(0, loading - sum(terms.values())))


def _loading_bytes(shape: ModelShape, quantization: Quantization, held_bytes: int) -> int:
    """Weights as they lie in the file, and what they are widened to on their way."""
    parameters = shape.linear_parameters + shape.embedding_parameters
    widened = shape.embedding_parameters if quantization == "bf16" else parameters
    return FILE_BYTES * parameters + held_bytes * widened
