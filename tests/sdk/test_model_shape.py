"""Shapes read from a configuration equal those of the real model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SmolLM3Config,
    XLMRobertaConfig,
)

from edge_sdk.errors import ConfigError, ModelError
from edge_sdk.model.model_shape import FAMILIES, read_shape

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "llama tied": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "llama without groups": LlamaConfig(**SIZES),
    "llama with its own head size": LlamaConfig(**GROUPED, head_dim=16),
    "mistral": MistralConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
    "smollm3": SmolLM3Config(**GROUPED),
    "gemma": GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": Gemma2Config(**GROUPED, head_dim=8),
    "phi3": Phi3Config(**GROUPED),
}
CLASSIFIERS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "xlm-roberta": XLMRobertaConfig(**SIZES),
    "llama": LlamaConfig(**GROUPED),
    "gemma": GemmaConfig(**GROUPED, head_dim=8),
    "phi3": Phi3Config(**GROUPED),
}


def real_linears(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every linear layer inside the blocks, from the model itself."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part.isdigit() for part in name.split("."))
    }


def real_embeddings(model: nn.Module) -> int:
    """Parameters of every embedding and of an untied output head; each counted once."""
    weights = {
        id(module.weight): module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    }
    head = model.get_output_embeddings()
    if head is not None:
        weights[id(head.weight)] = head.weight.numel()
    return sum(weights.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_causal_lms_layers_and_sizes_are_those_of_the_real_model(name):
    config = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(config)
    shape = read_shape(config.to_dict())
    assert {x.name: (x.d_in, x.d_out) for x in shape.linears} == real_linears(model)
    assert shape.embedding_parameters == real_embeddings(model)
    assert shape.linear_parameters == sum(a * b for a, b in real_linears(model).values())
    assert shape.dense == ()
    assert (shape.hidden_size, shape.num_layers, shape.vocab_size) == (32, 3, 50)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifiers_layers_and_head_are_those_of_the_real_model(name):
    config = AutoConfig.for_model(**{**CLASSIFIERS[name].to_dict(), "num_labels": 3})
    model = AutoModelForSequenceClassification.from_config(config)
    shape = read_shape(config.to_dict(), "SEQ_CLS", num_labels=3)
    assert {x.name: (x.d_in, x.d_out) for x in shape.linears} == real_linears(model)
    assert shape.embedding_parameters == real_embeddings(model)
    backbone = f"{model.base_model_prefix}."
    head = {n: list(p.shape) for n, p in model.named_parameters() if not n.startswith(backbone)}
    assert {dense.name: dense.shape for dense in shape.dense} == head


def test_every_family_is_compared_with_its_real_model():
    compared = {config.model_type for config in (*CONFIGS.values(), *CLASSIFIERS.values())}
    assert compared == set(FAMILIES)


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_default_targets_exist_and_are_taken_in_model_order(name):
    shape = read_shape(CONFIGS[name].to_dict())
    layers = shape.target_layers(list(reversed(shape.default_targets)))
    assert layers == list(shape.linears)


def test_targets_are_whole_last_name_parts():
    shape = read_shape(CLASSIFIERS["bert"].to_dict(), "SEQ_CLS", num_labels=2)
    names = [layer.name for layer in shape.target_layers(["query"])]
    assert names == [f"bert.encoder.layer.{i}.attention.self.query" for i in range(3)]
    with pytest.raises(ConfigError, match=r"\['quer'\] match no layer.*it has dense, key, query"):
        shape.target_layers(["query", "quer"])
    with pytest.raises(ConfigError, match=r"\[\] match no layer"):
        shape.target_layers([])


def test_a_shape_is_read_without_weights_and_without_the_model_being_built(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was made")

    monkeypatch.setattr(torch.Tensor, "__new__", fail)
    config = {**CONFIGS["llama"].to_dict(), "hidden_size": 8192, "num_hidden_layers": 80}
    assert read_shape(config).num_layers == 80


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "no shape is known for model type None; known: bert, gemma"),
        ({"model_type": "mamba"}, "no shape is known for model type 'mamba'"),
        ({"model_type": "llama"}, "the llama configuration has no field 'hidden_size'"),
        ({"model_type": "bert", "hidden_size": 8}, "a bert model is an encoder: use it with SEQ"),
    ],
)
def test_a_configuration_that_cannot_be_used_says_why(config, text):
    with pytest.raises(ModelError, match=text):
        read_shape(config)
