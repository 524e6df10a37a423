"""Predicted memory of the hand-written passes is that of their buffers, to the byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edge_sdk.compute.execution import Execution
from edge_sdk.general.memory_need import MemoryNeed, adapter_parameters
from edge_sdk.lean.agreement import layer_agreement
from edge_sdk.lean.architecture import read_architecture
from edge_sdk.lean.frozen import FrozenMatrix, Int8Matrix, Nf4Matrix, PlainMatrix
from edge_sdk.lean.llama import Frozen, Llama, input_groups
from edge_sdk.lean.memory_need import (
    Passes,
    base_bytes,
    embedding_bytes,
    lean_memory_need,
    tokens_at_once,
)
from edge_sdk.lean.native import library
from edge_sdk.lean.nf4 import quantize_nf4
from edge_sdk.lean.packing import pack
from edge_sdk.lean.prepared import open_prepared
from edge_sdk.lean.ranks import Ranks
from edge_sdk.model.model_folder import read_config
from edge_sdk.model.model_shape import ModelShape, read_shape
from edge_sdk.text.example import Example
from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.task import AdapterSpec
from tests.sdk.workloads import RATES, execution, llama_shape
from tests.tiny_model import save_tiny_llama

TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
LENGTH = 17
FUSED = library()


def frozen_of(shape: ModelShape, way: Execution, is_tied: bool) -> Frozen:
    """Random weights in a number format."""
    torch.manual_seed(0)
    outer = "bf16" if way.quantization != "fp32" else "fp32"
    if way.products == "int8":
        outer = "int8"
    d = shape.hidden_size
    names = ["model.embed_tokens"] + ["lm_head"] * (not is_tied)
    matrices: dict[str, FrozenMatrix] = {
        name: matrix_of(0.05 * torch.randn(shape.vocab_size, d), outer) for name in names
    }
    for layer in shape.linears:
        matrices[layer.name] = matrix_of(
            0.05 * torch.randn(layer.d_out, layer.d_in), way.quantization
        )
    head = d // shape.num_heads if shape.q_size == d else shape.q_size // shape.num_heads
    vectors = {"model.norm.weight": torch.ones(d)}
    for i in range(shape.num_layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            vectors[f"model.layers.{i}.{norm}.weight"] = torch.ones(d)
        if shape.model_type == "qwen3":
            for name in "qk":
                vectors[f"model.layers.{i}.self_attn.{name}_norm.weight"] = torch.ones(head)
    return Frozen(matrices=matrices, vectors=vectors)


def matrix_of(weight: torch.Tensor, quantization: str) -> FrozenMatrix:
    if quantization == "nf4":
        return Nf4Matrix(*quantize_nf4(weight), *weight.shape)
    if quantization == "int8":
        scale = weight.abs().amax(dim=1) / 127
        return Int8Matrix((weight / scale[:, None]).round().to(torch.int8), scale)
    return PlainMatrix(weight.to(torch.float32 if quantization == "fp32" else torch.bfloat16))


def examples_of(count: int, length: int, learned: int, vocabulary: int) -> list[Example]:
    """Examples of one length whose last tokens are learned."""
    marks = np.arange(length) >= length - learned
    return [Example((np.arange(length) + i) % vocabulary, marks) for i in range(count)]


def held_and_predicted(
    changes: dict[str, Any], dtype: torch.dtype, learned: int, exempt: bool, **way: Any
) -> tuple[int, Passes]:
    """Bytes the workspace really holds after a step, and the prediction."""
    config = {**TINY, **changes}
    shape, architecture = read_shape(config), read_architecture(config)
    plan = execution(shape, **{"length": LENGTH, "micro_batch": 3, **way})
    targets = way.pop("targets", shape.default_targets)
    layers = shape.target_layers(targets)
    adapter = AdapterSpec(r=16, lora_alpha=1.0, target_modules=list(targets), layers=layers)
    slices = {n: np.full(s, 0.01, np.float32) for n, s in adapter_shapes(adapter, plan.k).items()}
    groups = input_groups(shape.num_layers)
    ranks = Ranks(adapter, slices, 1.0, plan.trained_targets, groups)
    largest = max(shape.linears, key=lambda layer: layer.d_in * layer.d_out)
    llama = Llama(
        architecture,
        frozen_of(shape, plan, architecture.is_tied),
        dtype=dtype,
        kept=torch.float32 if plan.quantization == "fp32" else torch.bfloat16,
        products=plan.products,
        exempt=frozenset({largest.name} if exempt else ()),
        length=LENGTH,
    )
    batch = pack(examples_of(plan.micro_batch, LENGTH, learned, shape.vocab_size))
    for _ in range(2):
        loss = llama.add_gradients(batch, ranks, 1.0, plan.recomputed_blocks)
    assert np.isfinite(loss)
    passes = Passes(
        shape=shape,
        layers=tuple(layers),
        execution=plan,
        tokens=tokens_at_once(plan.micro_batch, LENGTH),
        labelled=plan.micro_batch * min(learned, LENGTH - 1),
        wide=dtype.itemsize,
        threads=torch.get_num_threads(),
        has_fused=FUSED is not None,
        multiplies_integers=FUSED is not None and FUSED.multiplies_integers,
    )
    return llama.workspace.held_bytes, passes


WAYS = [
    ("nf4", "wide", torch.float32),
    ("nf4", "int8", torch.float32),
    ("int8", "wide", torch.float32),
    ("int8", "int8", torch.float32),
    ("bf16", "wide", torch.float32),
    ("fp32", "wide", torch.float32),
    ("nf4", "wide", torch.bfloat16),
    ("bf16", "wide", torch.bfloat16),
]


@pytest.mark.parametrize("recomputed", [0, 1, 3])
@pytest.mark.parametrize(("quantization", "products", "dtype"), WAYS, ids=str)
def test_workspace_holds_what_was_predicted_to_the_byte(quantization, products, dtype, recomputed):
    held, passes = held_and_predicted(
        {},
        dtype,
        LENGTH,
        exempt=products == "int8",
        quantization=quantization,
        products=products,
        recomputed_blocks=recomputed,
    )
    assert held == passes.workspace_bytes


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False},
        {"model_type": "qwen3", "head_dim": 24},
        {"num_key_value_heads": 4},
        {"hidden_size": 96, "intermediate_size": 80},
        {"vocab_size": 4200},
        {"vocab_size": 1920},
        {"num_key_value_heads": 4, "vocab_size": 640},
        {"num_hidden_layers": 2},
        {"hidden_size": 72, "intermediate_size": 100},
    ],
    ids=str,
)
@pytest.mark.parametrize("products", ["wide", "int8"])
def test_every_size_of_the_model_has_its_part(changes, products):
    held, passes = held_and_predicted(
        changes, torch.float32, 5, exempt=True, quantization="nf4", products=products
    )
    targets = passes.labelled * passes.shape.hidden_size * 4 if "vocab_size" in changes else 0
    assert passes.workspace_bytes - targets <= held <= passes.workspace_bytes


@pytest.mark.parametrize(
    "way",
    [
        {"k": 1},
        {"k": 16},
        {"micro_batch": 1},
        {"micro_batch": 7},
        {"trained_targets": ("q_proj",)},
        {"trained_targets": ("down_proj",), "recomputed_blocks": 2},
    ],
    ids=str,
)
def test_every_part_of_the_work_has_its_part(way):
    held, passes = held_and_predicted({}, torch.float32, 3, exempt=False, **way)
    assert held == passes.workspace_bytes


def test_fewer_places_that_learn_need_less():
    few, many = (
        held_and_predicted({}, torch.float32, n, exempt=False, quantization="nf4")
        for n in (1, LENGTH)
    )
    assert few[0] == few[1].workspace_bytes < many[0] == many[1].workspace_bytes


def test_products_of_integers_alone_need_less_than_predicted_by_one_weight():
    """Which layers keep wide products is known only on the device."""
    held, passes = held_and_predicted(
        {}, torch.float32, 3, exempt=False, quantization="nf4", products="int8"
    )
    assert passes.multiplies_integers
    assert passes.workspace_bytes - held == 4 * 64 * (192 - 32), "keys and values are copied"


@pytest.mark.parametrize(
    ("quantization", "products"),
    [(x, "wide") for x in ("nf4", "int8", "bf16", "fp32")] + [("nf4", "int8"), ("int8", "int8")],
)
def test_base_takes_the_bytes_of_its_prepared_file(tmp_path, quantization, products):
    folder = save_tiny_llama(tmp_path / "model")
    base = open_prepared(folder, quantization, tmp_path / "cache", products=products)
    shape = read_shape(read_config(folder))
    way = execution(shape, quantization=quantization, products=products)
    assert base.held_bytes == base_bytes(shape, quantization) + embedding_bytes(shape, way)


def need(shape: ModelShape, *, labelled: int = 128, **changes: Any) -> MemoryNeed:
    kernels = {"has_fused": True, "multiplies_integers": True, "process_bytes": 0}
    kernels |= {name: changes.pop(name) for name in tuple(changes) if name in kernels}
    rates = replace(RATES, lean=replace(RATES.lean, **kernels))
    is_bf16 = changes.pop("computes_in_bf16", False)
    layers = shape.target_layers(shape.default_targets)
    return lean_memory_need(
        shape,
        layers,
        execution(shape, **changes),
        labelled=labelled,
        computes_in_bf16=is_bf16,
        rates=rates,
    )


def test_base_of_the_example_model_by_hand():
    shape = llama_shape()
    linears, norms = 106_168_320, 4 * 576 * 61
    assert need(shape, quantization="nf4").base == linears // 2 + linears // 16 + norms
    rows = 30 * (576 + 2 * 192 + 576 + 2 * 1536 + 576)
    assert need(shape, quantization="int8").base == linears + 4 * rows + norms
    assert need(shape, quantization="bf16").base == 2 * linears + norms
    assert need(shape, quantization="fp32").base == 4 * linears + norms
    assert need(shape, quantization="nf4").embeddings == 2 * 28_311_552
    assert need(shape, quantization="fp32").embeddings == 4 * 28_311_552
    untied = llama_shape(tie_word_embeddings=False)
    assert need(untied, quantization="nf4").embeddings == 4 * 28_311_552


def test_kept_activations_of_the_example_model_by_hand():
    shape, tokens = llama_shape(), 8 * 127
    per_token = 2 * (2 * 576 + 2 * 576 + 2 * 192 + 2 * 1536)
    statistics = 4 * 9
    found = need(shape, quantization="nf4").activations
    assert found == 30 * tokens * (per_token + statistics)
    half = need(shape, quantization="nf4", recomputed_blocks=15).activations
    inputs = 2 * 576
    assert half == tokens * (30 * inputs + 16 * (per_token + statistics - inputs))


def test_one_more_rank_costs_twenty_bytes_per_trained_number_and_b_turned_round():
    shape, per_rank = llama_shape(), 305_280
    turned = 30 * (2 * 576 + 2 * 192 + 2 * 1536 + 576)
    more, less = (need(shape, k=k) for k in (5, 4))
    assert more.adapter - less.adapter == 20 * per_rank + 4 * turned
    frozen = 30 * (1152 + 2 * (576 + 192) + 1152 + 2 * 2112 + 2112) - 30 * (1152 + 768)
    some = need(shape, trained_targets=("q_proj", "v_proj"))
    assert less.adapter - some.adapter == 4 * 12 * frozen


def test_last_values_and_updates_of_frozen_targets_are_the_peak_of_a_large_adapter():
    shape = llama_shape()
    found = need(shape, k=2000, length=2, micro_batch=1, trained_targets=("q_proj",))
    frozen = 2000 * (305_280 - 30 * 1152)
    assert found.spike == pytest.approx(8 * frozen, rel=1e-3)
    assert need(shape).spike == 0


def test_comparing_products_is_the_peak_of_very_short_examples_alone():
    shape = llama_shape()
    way = {"quantization": "nf4", "products": "int8", "recomputed_blocks": 30, "k": 1}
    assert need(shape, length=512, micro_batch=1, **way).spike == 0
    assert need(shape, length=8, micro_batch=1, labelled=7, **way).spike > 0
    way["products"] = "wide"
    assert need(shape, length=8, micro_batch=1, labelled=7, **way).spike == 0


@pytest.mark.parametrize(
    "more",
    [
        {"length": 129},
        {"micro_batch": 9},
        {"k": 5},
        {"labelled": 129},
        {"process_bytes": 1},
        {"has_fused": False},
        {"quantization": "bf16", "computes_in_bf16": False},
    ],
    ids=str,
)
def test_every_part_of_the_work_that_costs_memory_raises_the_prediction(more):
    shape = llama_shape()
    base = {"quantization": "bf16", "computes_in_bf16": True} if "computes_in_bf16" in more else {}
    assert need(shape, **more).total > need(shape, **base).total


@pytest.mark.parametrize(
    "larger",
    [
        {"num_hidden_layers": 31},
        {"intermediate_size": 1600},
        {"vocab_size": 49153},
        {"hidden_size": 585},
        {"tie_word_embeddings": False},
    ],
    ids=str,
)
def test_every_part_of_the_model_that_costs_memory_raises_the_prediction(larger):
    assert need(llama_shape(**larger)).total > need(llama_shape()).total


def test_each_block_computed_again_saves_what_it_would_keep():
    shape = llama_shape()
    totals = [need(shape, quantization="nf4", recomputed_blocks=n).total for n in range(31)]
    assert totals[0] == totals[1], "the first only moves to the buffers that all share"
    assert totals[1:] == sorted(totals[1:], reverse=True)
    assert len(set(totals)) == 30


def test_tokens_at_once_leave_out_what_predicts_nothing():
    assert tokens_at_once(8, 128) == 8 * 127
    assert tokens_at_once(3, 1) == 3
    batch = pack(examples_of(3, LENGTH, 5, 200))
    assert len(batch.tokens) == tokens_at_once(3, LENGTH)


def test_comparing_products_holds_no_more_than_was_predicted():
    """On the end of a long example; training itself sees almost nothing at once."""
    shape, architecture = read_shape(TINY), read_architecture(TINY)
    length, layers = 160, shape.target_layers(shape.default_targets)
    way = execution(shape, quantization="nf4", products="int8", micro_batch=1, length=length)
    adapter = AdapterSpec(
        r=16, lora_alpha=1.0, target_modules=list(shape.default_targets), layers=layers
    )
    slices = {n: np.full(s, 0.01, np.float32) for n, s in adapter_shapes(adapter, way.k).items()}
    ranks = Ranks(adapter, slices, 1.0, None, input_groups(shape.num_layers))
    llama = Llama(
        architecture,
        frozen_of(shape, way, architecture.is_tied),
        dtype=torch.float32,
        kept=torch.bfloat16,
        products="wide",
        length=length,
    )
    layer_agreement(llama, ranks, examples_of(2, length, length, shape.vocab_size))
    again = replace(way, recomputed_blocks=shape.num_layers, length=3)
    rates = replace(RATES, threads=torch.get_num_threads())
    few, many = (
        lean_memory_need(shape, layers, plan, labelled=2, computes_in_bf16=False, rates=rates)
        for plan in (again, replace(again, products="wide"))
    )
    spared = 8 * adapter_parameters(layers, way.k)  # there are no moments yet
    above = few.total - few.runtime - few.base - few.embeddings - few.adapter
    assert few.spike > 0 == many.spike
    assert llama.workspace.held_bytes < above + spared
