"""The layers and sizes of a base model, read from its ``config.json`` alone.

Planning and task creation need names and shapes, never weights, so this works on a machine
without torch and for a model that was never downloaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_sdk.errors import ConfigError, ModelError
from edge_sdk.model.lean_eligibility import why_not_lean
from edge_sdk.wire.task import DenseSpec, LayerSpec, TaskType

_LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2"})
_BERT_LIKE = frozenset({"bert", "roberta", "xlm-roberta"})
FAMILIES = tuple(sorted(_LLAMA_LIKE | _BERT_LIKE | {"phi3"}))

DEFAULT_TARGETS = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "bert": ("query", "key", "value"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of one transformer.

    Attributes:
        model_type: Hugging Face's name of the architecture.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the feed-forward block.
        num_layers: Blocks.
        num_heads: Attention heads.
        q_size: Width of the queries, all heads together.
        kv_size: Width of the keys, all key heads together.
        vocab_size: Tokens.
        linears: Every linear layer inside the blocks; these are what gets quantized.
        embedding_parameters: Token, position and type embeddings, and an untied output head.
        dense: Classifier head of a sequence classifier; empty for a causal LM.
        default_targets: Module name endings usually adapted in this family.
        file_number_bytes: Bytes per number in the model's files.
        is_lean: The hand-written passes compute it.
        is_tied: The output head is the embedding.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    q_size: int
    kv_size: int
    vocab_size: int
    linears: tuple[LayerSpec, ...]
    embedding_parameters: int
    dense: tuple[DenseSpec, ...]
    default_targets: tuple[str, ...]
    file_number_bytes: int = 2
    is_lean: bool = False
    is_tied: bool = False

    @property
    def is_encoder(self) -> bool:
        """Whether its blocks are those of BERT."""
        return self.model_type in _BERT_LIKE

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers inside the blocks."""
        return sum(layer.d_in * layer.d_out for layer in self.linears)

    def target_layers(self, target_modules: Sequence[str]) -> list[LayerSpec]:
        """Return the layers whose last name part is one of ``target_modules``, in model order.

        Raises:
            ConfigError: A target matches no layer.
        """
        endings = {layer.ending for layer in self.linears}
        unknown = sorted(set(target_modules) - endings)
        if unknown or not target_modules:
            raise ConfigError(
                f"target modules {unknown or list(target_modules)} match no layer of a "
                f"{self.model_type} model; it has {', '.join(sorted(endings))}"
            )
        return [x for x in self.linears if x.ending in set(target_modules)]


def read_shape(
    config: Mapping[str, Any], task_type: TaskType = "CAUSAL_LM", num_labels: int = 0
) -> ModelShape:
    """Derive the shape of a model from its Hugging Face configuration.

    Args:
        config: The content of ``config.json``.
        task_type: What the model is used for; decides module names and the head.
        num_labels: Classes, for ``SEQ_CLS``.

    Raises:
        ModelError: An unknown family, a missing field, or a family that cannot do the task.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"no shape is known for model type {family!r}; known: {', '.join(FAMILIES)}"
        )
    try:
        if family in _BERT_LIKE:
            return _bert_like(config, task_type, num_labels)
        return _llama_like(config, task_type, num_labels)
    except KeyError as error:
        raise ModelError(f"the {family} configuration has no field {error}") from None


def shape_from_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]]
) -> ModelShape:
    """Derive the shape of a causal LM of any family from the tensors in its files.

    Every two-dimensional weight inside a numbered block is taken for a linear layer
    ``(d_out, d_in)``, and every one outside for an embedding or head. That holds for models
    whose checkpoint uses their module names; a device checks it against the real model.

    Args:
        config: The content of ``config.json``.
        tensors: Name and shape of every tensor in the model's files.

    Raises:
        ModelError: No numbered block with a linear layer.
    """
    weights = {
        name.removesuffix(".weight"): shape
        for name, shape in tensors.items()
        if name.endswith(".weight") and len(shape) == 2
    }
    in_blocks = {name: shape for name, shape in weights.items() if _block_number(name) is not None}
    if not in_blocks:
        raise ModelError(f"no linear layer was found in the files of a {_family(config)} model")
    linears = tuple(
        LayerSpec(name=name, d_in=int(shape[1]), d_out=int(shape[0]))
        for name, shape in sorted(in_blocks.items(), key=lambda item: _natural(item[0]))
    )
    d = Counter(side for layer in linears for side in (layer.d_in, layer.d_out)).most_common(1)[0][
        0
    ]
    outside = [shape for name, shape in weights.items() if name not in in_blocks]
    return ModelShape(
        model_type=_family(config),
        hidden_size=d,
        intermediate_size=max(max(layer.d_in, layer.d_out) for layer in linears),
        num_layers=len({_block_number(name) for name in in_blocks}),
        num_heads=int(config.get("num_attention_heads", 1)),
        q_size=d,
        kv_size=d,
        vocab_size=max((int(shape[0]) for shape in outside), default=0),
        linears=linears,
        embedding_parameters=sum(int(shape[0]) * int(shape[1]) for shape in outside),
        dense=(),
        default_targets=(),
        file_number_bytes=_file_number_bytes(config),
    )


def _family(config: Mapping[str, Any]) -> str:
    return str(config.get("model_type"))


def _file_number_bytes(config: Mapping[str, Any]) -> int:
    """Return 4 for a model saved in fp32, which old configurations leave unsaid, else 2."""
    named = config.get("dtype") or config.get("torch_dtype") or "float32"
    return 4 if named == "float32" else 2


def _block_number(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _llama_like(config: Mapping[str, Any], task_type: TaskType, num_labels: int) -> ModelShape:
    d, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or d // heads)
    q_size = heads * head_size
    kv_size = int(config.get("num_key_value_heads") or heads) * head_size
    family = str(config["model_type"])
    if family == "phi3":
        block = [
            ("self_attn.qkv_proj", d, q_size + 2 * kv_size),
            ("self_attn.o_proj", q_size, d),
            ("mlp.gate_up_proj", d, 2 * inner),
            ("mlp.down_proj", inner, d),
        ]
    else:
        block = [
            ("self_attn.q_proj", d, q_size),
            ("self_attn.k_proj", d, kv_size),
            ("self_attn.v_proj", d, kv_size),
            ("self_attn.o_proj", q_size, d),
            ("mlp.gate_proj", d, inner),
            ("mlp.up_proj", d, inner),
            ("mlp.down_proj", inner, d),
        ]
    tied = bool(config.get("tie_word_embeddings", family.startswith("gemma")))
    classifies = task_type == "SEQ_CLS"
    vocabulary = int(config["vocab_size"])
    return ModelShape(
        model_type=family,
        hidden_size=d,
        intermediate_size=inner,
        num_layers=int(config["num_hidden_layers"]),
        num_heads=heads,
        q_size=q_size,
        kv_size=kv_size,
        vocab_size=vocabulary,
        linears=_repeat("model.layers", int(config["num_hidden_layers"]), block),
        embedding_parameters=vocabulary * d * (1 if tied or classifies else 2),
        dense=(DenseSpec(name="score.weight", shape=[num_labels, d]),) if classifies else (),
        default_targets=DEFAULT_TARGETS["phi3" if family == "phi3" else "llama"],
        file_number_bytes=_file_number_bytes(config),
        is_lean=why_not_lean(config, task_type) is None,
        is_tied=tied,
    )


def _bert_like(config: Mapping[str, Any], task_type: TaskType, num_labels: int) -> ModelShape:
    if task_type != "SEQ_CLS":
        raise ModelError(f"a {config['model_type']} model is an encoder: use it with SEQ_CLS")
    d, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    block = [
        ("attention.self.query", d, d),
        ("attention.self.key", d, d),
        ("attention.self.value", d, d),
        ("attention.output.dense", d, d),
        ("intermediate.dense", d, inner),
        ("output.dense", inner, d),
    ]
    family = str(config["model_type"])
    vocabulary = int(config["vocab_size"])
    positions = int(config["max_position_embeddings"]) + int(config.get("type_vocab_size", 2))
    head = [("classifier", num_labels)]
    if family != "bert":
        head = [("classifier.dense", d), ("classifier.out_proj", num_labels)]
    dense = [
        DenseSpec(name=f"{name}.{part}", shape=[size, d] if part == "weight" else [size])
        for name, size in head
        for part in ("weight", "bias")
    ]
    prefix = "bert" if family == "bert" else "roberta"
    return ModelShape(
        model_type=family,
        hidden_size=d,
        intermediate_size=inner,
        num_layers=int(config["num_hidden_layers"]),
        num_heads=int(config["num_attention_heads"]),
        q_size=d,
        kv_size=d,
        vocab_size=vocabulary,
        linears=_repeat(f"{prefix}.encoder.layer", int(config["num_hidden_layers"]), block),
        embedding_parameters=(vocabulary + positions) * d,
        dense=tuple(dense),
        default_targets=DEFAULT_TARGETS["bert"],
        file_number_bytes=_file_number_bytes(config),
    )


def _repeat(
    prefix: str, count: int, block: Sequence[tuple[str, int, int]]
) -> tuple[LayerSpec, ...]:
    return tuple(
        LayerSpec(name=f"{prefix}.{i}.{name}", d_in=d_in, d_out=d_out)
        for i in range(count)
        for name, d_in, d_out in block
    )
