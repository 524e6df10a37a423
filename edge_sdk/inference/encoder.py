"""The ONNX graph of a BERT-shaped text classifier: one text in, one number per label out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sdk.inference.decoder import RESULT, TOKENS
from edge_sdk.inference.graph import CONTRIB, INT64, Graph
from edge_sdk.model.model_shape import ModelShape


def build_encoder(graph: Graph, shape: ModelShape) -> None:
    """Add all of a model to an empty graph; the classifier's head is slots for the task's values.

    Raises:
        ModelError: The model's files lack a tensor, or have one of another shape.
    """
    config = graph.weights.config
    epsilon = float(config.get("layer_norm_eps", 1e-12))
    prefix = _prefix(graph, shape)
    graph.add_input(TOKENS, INT64, (1, "tokens"))
    stream = _add_embeddings(graph, shape, prefix, epsilon)
    for layer in range(shape.num_layers):
        stream = _add_block(graph, shape, prefix, layer, stream, epsilon)
    first = graph.add_constant("first", np.array(0, np.int64))
    row = graph.add_node("Gather", [stream, first], "first row", axis=1)
    _add_head(graph, shape, prefix, row)
    graph.add_output(RESULT, (1, "labels"))


def text_limit(config: Mapping[str, Any]) -> int:
    """Return the most tokens a text may have; the tokenizer's own limit may be lower."""
    return int(config["max_position_embeddings"]) - _first_place(config)


def _prefix(graph: Graph, shape: ModelShape) -> str:
    """Return what the files put before a tensor's name; a bare encoder's put nothing."""
    named = f"{'bert' if shape.model_type == 'bert' else 'roberta'}."
    return named if graph.weights.has(f"{named}embeddings.word_embeddings.weight") else ""


def _add_embeddings(graph: Graph, shape: ModelShape, prefix: str, epsilon: float) -> str:
    config, d = graph.weights.config, shape.hidden_size
    name = f"{prefix}embeddings"
    words = graph.look_up(
        graph.add_embedding(f"{name}.word_embeddings.weight", shape.vocab_size, d),
        TOKENS,
        "words",
    )
    count, types = int(config["max_position_embeddings"]), int(config.get("type_vocab_size", 2))
    places = graph.weights.array(f"{name}.position_embeddings.weight", (count, d))
    kinds = graph.weights.array(f"{name}.token_type_embeddings.weight", (types, d))
    table = graph.add_table("places", places.astype(np.float32) + kinds[0].astype(np.float32))
    skipped = _first_place(config)
    start = graph.add_constant("start", np.array([skipped], np.int64))
    length = graph.add_node("Shape", [TOKENS], "length", start=1, end=2)
    end = graph.add_node("Add", [length, start], "end")
    axis = graph.add_constant("axis", np.array([0], np.int64))
    rows = graph.add_node("Slice", [table, start, end, axis], "place rows")
    summed = graph.add_node("Add", [words, rows], "embedded")
    return _add_norm(graph, f"{name}.LayerNorm", summed, d, epsilon)


def _first_place(config: Mapping[str, Any]) -> int:
    """Return the position of a text's first token: RoBERTa counts from after the padding's."""
    if config.get("model_type") == "bert":
        return 0
    return int(config.get("pad_token_id", 1)) + 1


def _add_block(
    graph: Graph, shape: ModelShape, prefix: str, layer: int, x: str, epsilon: float
) -> str:
    d, inner = shape.hidden_size, shape.intermediate_size
    block = f"{prefix}encoder.layer.{layer}"
    parts = [
        _add_linear(graph, shape, prefix, f"{block}.attention.self.{part}", x, d, d)
        for part in ("query", "key", "value")
    ]
    attended = graph.add_node(
        "MultiHeadAttention",
        parts,
        f"{block}.attended",
        domain=CONTRIB,
        num_heads=shape.num_heads,
    )
    dense = _add_linear(graph, shape, prefix, f"{block}.attention.output.dense", attended, d, d)
    summed = graph.add_node("Add", [x, dense], f"{block}.middle")
    x = _add_norm(graph, f"{block}.attention.output.LayerNorm", summed, d, epsilon)
    wide = _add_linear(graph, shape, prefix, f"{block}.intermediate.dense", x, d, inner)
    active = graph.add_node("Gelu", [wide], f"{block}.active", domain=CONTRIB)
    back = _add_linear(graph, shape, prefix, f"{block}.output.dense", active, inner, d)
    summed = graph.add_node("Add", [x, back], f"{block}.end")
    return _add_norm(graph, f"{block}.output.LayerNorm", summed, d, epsilon)


def _add_linear(
    graph: Graph, shape: ModelShape, prefix: str, name: str, x: str, d_in: int, d_out: int
) -> str:
    """Add a layer whose adapter goes by the name it has in the whole classifier."""
    full = name if prefix else f"{'bert' if shape.model_type == 'bert' else 'roberta'}.{name}"
    return graph.add_linear(full, {name: d_out}, x, d_in)


def _add_norm(graph: Graph, name: str, x: str, size: int, epsilon: float) -> str:
    return graph.add_node(
        "LayerNormalization",
        [x, graph.add_vector(f"{name}.weight", size), graph.add_vector(f"{name}.bias", size)],
        f"{name}.normed",
        epsilon=epsilon,
    )


def _add_head(graph: Graph, shape: ModelShape, prefix: str, x: str) -> None:
    """Turn the first token's ``(1, d)`` into the result: BERT pools first, RoBERTa's head does."""
    d = shape.hidden_size
    if shape.model_type == "bert":
        pooled = graph.add_head("pooler", f"{prefix}pooler.dense.weight", x, d, d)
        x = graph.add_node("Tanh", [pooled], "pooled")
        _add_dense(graph, "classifier", x, ("labels", d), RESULT)
        return
    wide = _add_dense(graph, "classifier.dense", x, (d, d), "head")
    _add_dense(
        graph,
        "classifier.out_proj",
        graph.add_node("Tanh", [wide], "pooled"),
        ("labels", d),
        RESULT,
    )


def _add_dense(graph: Graph, name: str, x: str, size: tuple[int | str, int], output: str) -> str:
    """Add a layer whose weight and bias are slots."""
    weight = graph.add_slot(f"{name}.weight", size)
    bias = graph.add_slot(f"{name}.bias", size[:1])
    return graph.add_node("Gemm", [x, weight, bias], output, transB=1)
