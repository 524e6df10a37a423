"""The ONNX graph of a Llama-shaped model: one example, and the keys and values of its past.

The past's buffers are as long as the caller wants them and are written in place, which
GroupQueryAttention does when input and output of the cache are the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sdk.inference.graph import CONTRIB, INT32, INT64, Graph
from edge_sdk.inference.rotation import rotation_tables
from edge_sdk.model.model_shape import ModelShape

LONGEST_CONTEXT = 32768
"""Tokens; models that take more are exported for this many."""

TOKENS, LAST, LENGTH, RESULT = "tokens", "last", "length", "result"
"""Inputs: the new tokens, the index of the last one in the text, tokens in the text. Output."""

_EMBEDDING, _HEAD, _CLASSES = "model.embed_tokens.weight", "lm_head", "score.weight"
_LAST_ROW = "last row"


def past_names(layer: int) -> tuple[str, str]:
    """Return the inputs that hold keys and values of the past."""
    return f"past.{layer}.key", f"past.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Return the outputs that hold keys and values of past and present."""
    return f"present.{layer}.key", f"present.{layer}.value"


def context_of(config: Mapping[str, Any]) -> int:
    """Return the most tokens that prompt and answer may have together."""
    return min(int(config.get("max_position_embeddings") or LONGEST_CONTEXT), LONGEST_CONTEXT)


def build_decoder(graph: Graph, shape: ModelShape, *, is_classifier: bool) -> None:
    """Add all of a model to an empty graph.

    Its result is ``(1, vocab_size)`` logits of the token after the last one, or ``(1, labels)`` of
    a classifier whose head ``score.weight`` is a slot.

    Raises:
        ModelError: The model's files lack a tensor, or have one of another shape.
    """
    config, d = graph.weights.config, shape.hidden_size
    epsilon = float(config.get("rms_norm_eps", 1e-6))
    _add_inputs(graph, config, shape)
    table = graph.add_embedding(_EMBEDDING, shape.vocab_size, d)
    stream = graph.look_up(table, TOKENS, "embedded")
    normed = graph.add_node(
        "SimplifiedLayerNormalization",
        [stream, graph.add_vector("model.layers.0.input_layernorm.weight", d)],
        "model.layers.0.input",
        epsilon=epsilon,
    )
    for layer in range(shape.num_layers):
        block = f"model.layers.{layer}"
        attended = _add_attention(graph, shape, layer, normed, epsilon)
        stream, normed = _add_norm(
            graph, stream, attended, f"{block}.post_attention_layernorm.weight", d, epsilon
        )
        change = _add_mlp(graph, shape, block, normed)
        if layer + 1 < shape.num_layers:
            following = f"model.layers.{layer + 1}.input_layernorm.weight"
            stream, normed = _add_norm(graph, stream, change, following, d, epsilon)
    graph.add_constant(_LAST_ROW, np.array([-1], np.int64))
    rows = [graph.add_node("Gather", [x, _LAST_ROW], f"{x}.last", axis=1) for x in (stream, change)]
    _, last = _add_norm(graph, rows[0], rows[1], "model.norm.weight", d, epsilon)
    _add_head(graph, shape, last, is_classifier=is_classifier)


def _add_inputs(graph: Graph, config: Mapping[str, Any], shape: ModelShape) -> None:
    graph.add_input(TOKENS, INT64, (1, "new"))
    graph.add_input(LAST, INT32, (1,))
    graph.add_input(LENGTH, INT32, ())
    head_size = shape.q_size // shape.num_heads
    cosines, sines = rotation_tables(config, head_size, context_of(config))
    graph.add_table("cosines", cosines)
    graph.add_table("sines", sines)


def _add_attention(graph: Graph, shape: ModelShape, layer: int, x: str, epsilon: float) -> str:
    block, d = f"model.layers.{layer}.self_attn", shape.hidden_size
    head_size = shape.q_size // shape.num_heads
    kv_heads = shape.kv_size // head_size
    sizes = [shape.q_size, shape.kv_size, shape.kv_size]
    layers = {f"{block}.{name}_proj": n for name, n in zip("qkv", sizes, strict=True)}
    joined = graph.add_linear(f"{block}.qkv_proj", layers, x, d)
    parts = [joined, "", ""]
    if graph.weights.has(f"{block}.q_norm.weight"):
        parts = _split(graph, joined, sizes)
        parts[:2] = (
            _norm_heads(graph, f"{block}.{name}_norm.weight", part, size, head_size, epsilon)
            for name, part, size in zip("qk", parts, sizes, strict=False)
        )
    for name in past_names(layer):
        graph.add_input(name, 1, (1, kv_heads, "room", head_size))
    for name in present_names(layer):
        graph.add_output(name, (1, kv_heads, "room after", head_size))
    attended = graph.add_node(
        "GroupQueryAttention",
        [*parts, *past_names(layer), LAST, LENGTH, "cosines", "sines"],
        [f"{block}.attended", *present_names(layer)],
        domain=CONTRIB,
        num_heads=shape.num_heads,
        kv_num_heads=kv_heads,
        do_rotary=1,
    )
    output = f"{block}.o_proj"
    return graph.add_linear(output, {output: d}, attended, shape.q_size)


def _split(graph: Graph, x: str, sizes: list[int]) -> list[str]:
    """Cut the last axis into parts of the given sizes."""
    names = [f"{x}.{i}" for i in range(len(sizes))]
    graph.add_node(
        "Split", [x, graph.add_constant(f"{x}.sizes", np.array(sizes, np.int64))], names, axis=-1
    )
    return names


def _norm_heads(
    graph: Graph, weight: str, x: str, size: int, head_size: int, epsilon: float
) -> str:
    """Normalize each head of ``(1, n, size)`` by itself."""
    shapes = [[1, -1, size // head_size, head_size], [1, -1, size]]
    split = graph.add_node(
        "Reshape",
        [x, graph.add_constant(f"{weight}.split", np.array(shapes[0], np.int64))],
        f"{weight}.heads",
    )
    normed = graph.add_node(
        "SimplifiedLayerNormalization",
        [split, graph.add_vector(weight, head_size)],
        f"{weight}.normed",
        epsilon=epsilon,
    )
    return graph.add_node(
        "Reshape",
        [normed, graph.add_constant(f"{weight}.join", np.array(shapes[1], np.int64))],
        f"{weight}.joined",
    )


def _add_mlp(graph: Graph, shape: ModelShape, block: str, x: str) -> str:
    d, inner = shape.hidden_size, shape.intermediate_size
    layers = dict.fromkeys((f"{block}.mlp.gate_proj", f"{block}.mlp.up_proj"), inner)
    joined = graph.add_linear(f"{block}.mlp.gate_up_proj", layers, x, d)
    gate, up = _split(graph, joined, [inner, inner])
    silu = graph.add_node("QuickGelu", [gate], f"{block}.mlp.silu", domain=CONTRIB, alpha=1.0)
    gated = graph.add_node("Mul", [silu, up], f"{block}.mlp.gated")
    down = f"{block}.mlp.down_proj"
    return graph.add_linear(down, {down: d}, gated, inner)


def _add_norm(
    graph: Graph, stream: str, change: str, weight: str, size: int, epsilon: float
) -> tuple[str, str]:
    """Add a change to the stream; return the new stream and its norm."""
    summed, normed = f"{weight}.stream", f"{weight}.normed"
    graph.add_node(
        "SkipSimplifiedLayerNormalization",
        [stream, change, graph.add_vector(weight, size)],
        [normed, "", "", summed],
        domain=CONTRIB,
        epsilon=epsilon,
    )
    return summed, normed


def _add_head(graph: Graph, shape: ModelShape, x: str, *, is_classifier: bool) -> None:
    """Turn ``(1, 1, d)`` into the result."""
    d = shape.hidden_size
    if is_classifier:
        head = graph.add_slot(_CLASSES, ("labels", d))
        turned = graph.add_node("Transpose", [head], "score.turned", perm=[1, 0])
        wide, size = graph.add_node("MatMul", [x, turned], "score.y"), "labels"
    else:
        tensor = _EMBEDDING if shape.is_tied else f"{_HEAD}.weight"
        wide = graph.add_head(_HEAD, tensor, x, d, shape.vocab_size)
        size = str(shape.vocab_size)
    first = graph.add_constant("first", np.array([1], np.int64))
    graph.add_node("Squeeze", [wide, first], RESULT)
    graph.add_output(RESULT, (1, int(size) if size.isdigit() else size))
