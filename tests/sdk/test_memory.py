"""Predicted memory is what autograd really keeps, what weights really take, and no less."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from edge_sdk.general.checkpointing import checkpointed_blocks
from edge_sdk.general.lora import attach
from edge_sdk.general.memory_need import NF4_BYTES, MemoryNeed, kept_bytes, memory_need
from edge_sdk.general.narrow_linear import store_as_bf16
from edge_sdk.model.model_shape import ModelShape, read_shape, shape_from_tensors
from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.task import AdapterSpec
from tests.sdk.workloads import BERT, execution, llama_shape

ENCODERS = ("bert", "roberta", "xlm-roberta")
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "phi3")
LENGTH, K = 24, 4
SIZES = {
    "vocab_size": 97,
    "hidden_size": 192,
    "intermediate_size": 480,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query", "key", "value"}
QUERIES_AND_VALUES = {"q_proj", "v_proj", "query", "value"}


def family_config(family: str, blocks: int, key_heads: int = 2) -> dict[str, object]:
    config = {**SIZES, "model_type": family, "num_hidden_layers": blocks}
    if family in GROUPED:
        config["num_key_value_heads"] = key_heads
    if family in ("qwen3", "gemma", "gemma2"):
        config["head_dim"] = 48
    return config


def adapted(
    config: dict[str, object],
    dtype: torch.dtype,
    targets: tuple[str, ...] | None,
    trained: Collection[str] | None,
    store: Callable[[torch.nn.Module, ModelShape], None] | None = None,
) -> tuple[torch.nn.Module, ModelShape]:
    """A random frozen model with an adapter of rank 4, and what the planner knows of it."""
    family = str(config["model_type"])
    settings = transformers.AutoConfig.for_model(**config)
    kind = transformers.AutoModelForCausalLM
    if family in ENCODERS:
        settings.num_labels = 2
        kind = transformers.AutoModelForSequenceClassification
    model = kind.from_config(settings).eval().requires_grad_(False).to(dtype)
    model.config.use_cache = False
    if family in (*GROUPED, *ENCODERS):
        is_encoder = family in ENCODERS
        shape = read_shape(config, "SEQ_CLS" if is_encoder else "CAUSAL_LM", 2 * is_encoder)
    else:
        shape = shape_from_tensors(config, {n: p.shape for n, p in model.named_parameters()})
    if store is not None:
        store(model, shape)
    names = targets or shape.default_targets
    adapter = AdapterSpec(
        r=16,
        lora_alpha=16.0,
        target_modules=list(names),
        layers=shape.target_layers(names),
        dense=list(shape.dense),
    )
    slices = {n: np.full(s, 0.01, np.float32) for n, s in adapter_shapes(adapter, K).items()}
    attach(model, adapter, slices, 1.0, trained)
    return model, shape


def loss_of(model: torch.nn.Module, examples: int, is_padded: bool, length: int = LENGTH) -> Tensor:
    ids = torch.arange(examples * length).reshape(examples, length) % 90 + 3
    mask = torch.ones_like(ids)
    if is_padded:
        mask[0, -3:] = 0
    return model(input_ids=ids, attention_mask=mask).logits.float().sum()


def saved_bytes(model: torch.nn.Module, examples: int, is_padded: bool, length: int) -> int:
    """Bytes of the distinct storages that autograd saves, the model's own not counted."""
    own = {
        x.untyped_storage().data_ptr()
        for held in (model.parameters(), model.buffers())
        for x in held
    }
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model, examples, is_padded, length)
    total = sum(storage.nbytes() for storage in storages.values())
    assert loss.requires_grad
    return total


def really_kept(
    family: str,
    dtype: torch.dtype = torch.float32,
    targets: tuple[str, ...] | None = None,
    trained: Collection[str] | None = None,
    is_padded: bool = True,
    key_heads: int = 2,
    length: int = LENGTH,
    store: Callable[[torch.nn.Module, ModelShape], None] | None = None,
) -> tuple[float, float]:
    """Bytes that one more token keeps in one more block: measured, and predicted."""
    kept, fixed = [], []
    for blocks in (1, 2):
        config = family_config(family, blocks, key_heads)
        model, shape = adapted(config, dtype, targets, trained, store)
        few, many = (saved_bytes(model, n, is_padded, length) for n in (2, 4))
        kept.append((many - few) / (2 * length))
        fixed.append(2 * few - many)
    names = targets or shape.default_targets
    layers = [x for x in shape.target_layers(names) if trained is None or x.ending in trained]
    way = execution(shape, micro_batch=4 if is_padded else 1, length=length, k=K)
    compute = 2 if dtype == torch.bfloat16 else 4
    smallest = min(layer.d_in * layer.d_out for layer in shape.linears)
    assert fixed[1] - fixed[0] < compute * smallest, "no copy of a weight is kept"
    return kept[1] - kept[0], kept_bytes(shape, layers, way, compute)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", [*GROUPED, *ENCODERS])
def test_kept_bytes_are_what_autograd_saves(family, dtype):
    measured, predicted = really_kept(family, dtype)
    assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "bert"])
def test_kept_bytes_are_what_autograd_saves_of_examples_of_one_length(family):
    """Without padding there is no mask, and grouped heads share their keys and values."""
    measured, predicted = really_kept(family, is_padded=False)
    assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_kept_bytes_are_what_autograd_saves_where_no_heads_share_keys(family, is_padded):
    measured, predicted = really_kept(family, is_padded=is_padded, key_heads=4)
    assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("trained", [ATTENTION, QUERIES_AND_VALUES], ids=["attention", "q and v"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "bert"])
def test_kept_bytes_are_what_autograd_saves_when_some_targets_are_dropped(family, trained):
    if family == "phi3" and trained is QUERIES_AND_VALUES:
        trained = {"qkv_proj"}
    measured, predicted = really_kept(family, trained=trained)
    assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("trained", [None, {"dense"}, {"key"}], ids=str)
def test_kept_bytes_are_what_autograd_saves_with_every_layer_of_an_encoder(trained):
    measured, predicted = really_kept(
        "bert", targets=("query", "key", "value", "dense"), trained=trained
    )
    assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("trained", [{"o_proj"}, {"down_proj"}, {"up_proj"}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_kept_bytes_are_what_autograd_saves_for_a_single_target(family, trained):
    measured, predicted = really_kept(family, trained=trained)
    assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bert"])
def test_kept_bytes_count_the_mask_and_scores_of_long_examples(family):
    measured, predicted = really_kept(family, length=200)
    assert predicted == pytest.approx(measured, rel=0.02)


def test_weights_stored_in_bf16_keep_neither_a_widened_copy_nor_inputs():
    measured, predicted = really_kept("llama", trained=QUERIES_AND_VALUES, store=_store_narrow)
    assert predicted == pytest.approx(measured, rel=0.02)


def _store_narrow(model: torch.nn.Module, shape: ModelShape) -> None:
    names = [layer.name for layer in shape.linears]
    for name in names:
        model.get_submodule(name).to(torch.bfloat16)
    store_as_bf16(model, names, torch.float32)
    model.config.dtype = torch.float32


def test_weights_in_nf4_keep_neither_a_decoded_copy_nor_inputs():
    measured, predicted = really_kept("llama", trained=QUERIES_AND_VALUES, store=_store_nf4)
    assert predicted == pytest.approx(measured, rel=0.02)


def _store_nf4(model: torch.nn.Module, shape: ModelShape) -> None:
    from bitsandbytes.nn import Linear4bit

    for layer in shape.linears:
        narrow = Linear4bit(
            layer.d_in,
            layer.d_out,
            bias=False,
            compute_dtype=torch.float32,
            quant_type="nf4",
        )
        narrow.weight.data = model.get_submodule(layer.name).weight.data
        model.set_submodule(layer.name, narrow.to("cpu").requires_grad_(False))


def test_family_in_no_table_is_not_taken_for_less_than_it_keeps():
    few = really_kept("gpt_neox", targets=("query_key_value",))
    more = really_kept("gpt_neox", targets=("query_key_value", "dense_4h_to_h", "dense_h_to_4h"))
    for measured, predicted in (few, more):
        assert predicted >= measured
    assert more[1] - few[1] >= more[0] - few[0] > 0


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_checkpointing_keeps_the_input_of_each_block_and_no_more(family):
    """Tensors alive after the forward pass: one of ``hidden_size`` numbers per token and block."""
    alive = []
    for blocks in (2, 4):
        model, shape = adapted(family_config(family, blocks), torch.float32, None, None)
        few, many = (_alive_bytes(model, n, is_checkpointed=True) for n in (2, 4))
        alive.append((many - few) / (2 * LENGTH))
    assert (alive[1] - alive[0]) / 2 == 4 * shape.hidden_size


def _alive_bytes(model: torch.nn.Module, examples: int, is_checkpointed: bool) -> int:
    """Bytes of all tensors Python can reach; autograd alone holds none of a checkpointed block."""
    gc.collect()
    before = _reachable()
    with checkpointed_blocks(model, 99) if is_checkpointed else nullcontext():
        loss = loss_of(model, examples, is_padded=True)
        grown = _reachable()
        loss.backward()
    return sum(size for place, size in grown.items() if place not in before)


def _reachable() -> dict[int, int]:
    found = (x for x in gc.get_objects() if type(x) is Tensor)
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in found}


def test_checkpointing_needs_one_block_and_the_inputs_of_all():
    shape = llama_shape()
    kept = need(shape).activations
    less = need(shape, recomputed_blocks=30).activations
    boundary = 4 * shape.hidden_size * 8 * 128
    assert kept - boundary == pytest.approx(30 * (less - 30 * boundary), abs=30)


def need(
    shape: ModelShape,
    *,
    batch_size: int = 8,
    predicted: int = 16,
    computes_in_bf16: bool = False,
    runtime_bytes: int = 0,
    **changes: object,
) -> MemoryNeed:
    return memory_need(
        shape,
        shape.target_layers(shape.default_targets),
        execution(shape, **changes),
        batch_size=batch_size,
        predicted=predicted,
        computes_in_bf16=computes_in_bf16,
        runtime_bytes=runtime_bytes,
    )


LINEARS = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
EMBEDDINGS = 49152 * 576
LARGEST = 576 * 1536


def test_parameters_of_the_example_model_are_counted_right():
    assert llama_shape().linear_parameters == LINEARS == 106_168_320
    assert llama_shape().embedding_parameters == EMBEDDINGS == 28_311_552


@pytest.mark.parametrize(
    ("stored", "quantization", "computes_in_bf16", "base", "embeddings", "loading"),
    [
        # the file is mapped while it loads, and nothing of it stays
        ("bfloat16", "nf4", False, NF4_BYTES, 4, 2 * (LINEARS + EMBEDDINGS) + 8 * LARGEST),
        ("bfloat16", "fp32", False, 4, 4, 2 * (LINEARS + EMBEDDINGS)),
        ("bfloat16", "fp32", True, 4, 4, 2 * (LINEARS + EMBEDDINGS)),
        # embeddings stay as mapped, and with them every page that was read
        ("bfloat16", "nf4", True, 2 + NF4_BYTES, 2, 8 * LARGEST),
        ("float32", "nf4", False, 4 + NF4_BYTES, 4, 8 * LARGEST),
        ("float32", "bf16", False, 4 + 2, 4, 0),
        # so do linear layers, also while the embeddings are widened
        ("bfloat16", "bf16", False, 2, 2 + 4, 0),
        ("bfloat16", "bf16", True, 2, 2, 0),
        ("float32", "fp32", False, 4, 4, 0),
        ("float32", "bf16", True, 2, 2, 4 * (LINEARS + EMBEDDINGS)),
        ("float32", "nf4", True, NF4_BYTES, 2, 4 * (LINEARS + EMBEDDINGS) + 8 * LARGEST),
    ],
)
def test_weights_take_what_their_format_and_that_of_their_file_say(
    stored, quantization, computes_in_bf16, base, embeddings, loading
):
    shape = llama_shape(dtype=stored)
    # almost no tokens: loading is the peak, if it takes anything at all
    found = need(
        shape,
        quantization=quantization,
        computes_in_bf16=computes_in_bf16,
        micro_batch=1,
        batch_size=1,
        length=1,
        predicted=1,
        k=1,
    )
    assert found.base == int(base * LINEARS)
    assert found.embeddings == embeddings * EMBEDDINGS
    at_loading = found.base + found.embeddings + loading
    if loading > 10**8:
        assert found.total == pytest.approx(at_loading + 350 * 49152, rel=1e-6)
    else:
        assert found.total > at_loading


def test_nf4_takes_half_a_byte_and_the_scales_of_its_groups():
    """64 weights share an 8-bit scale, 256 scales a 32-bit one: bitsandbytes' own tensors."""
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        torch.randn(256, 1024), quant_type="nf4", compress_statistics=True
    )
    held = packed.numel() + state.absmax.numel() + 4 * state.state2.absmax.numel()
    assert held == pytest.approx(NF4_BYTES * 256 * 1024, rel=1e-6)


def test_one_more_rank_costs_twenty_bytes_per_number_when_gradients_add_up():
    shape = llama_shape()
    per_rank = sum(layer.d_in + layer.d_out for layer in shape.linears)
    assert per_rank == 305_280
    more, less = (need(shape, k=k, micro_batch=2) for k in (5, 4))
    assert more.adapter - less.adapter == 20 * per_rank
    more, less = (need(shape, k=k) for k in (5, 4))
    assert more.adapter - less.adapter == 16 * per_rank


def test_gradients_are_the_peak_of_a_large_adapter_on_few_tokens():
    """Without micro-batches they appear at the end of the step, when activations are gone."""
    shape = llama_shape(dtype="float32")
    per_rank = 305_280
    big = need(shape, k=2000, length=1, micro_batch=1, batch_size=1, predicted=1)
    assert big.total == pytest.approx(
        4 * (LINEARS + EMBEDDINGS) + 350 * 49152 + 20 * per_rank * 2000, rel=1e-6
    )


def test_frozen_targets_cost_less_than_trained_ones():
    shape = llama_shape()
    all_trained, some = need(shape), need(shape, trained_targets=("q_proj", "v_proj"))
    assert some.adapter < all_trained.adapter
    assert some.activations < all_trained.activations
    frozen = 4 * sum(
        x.d_in + x.d_out for x in shape.linears if x.ending not in ("q_proj", "v_proj")
    )
    assert all_trained.adapter - some.adapter == (16 - 8) * frozen


def test_logits_cost_only_where_something_is_learned():
    shape = llama_shape()
    few, many = (need(shape, predicted=n) for n in (100, 101))
    assert many.logits - few.logits == 8 * 49152 * 12
    assert need(shape, predicted=500).total == need(shape, predicted=128).total


def test_classifier_has_no_logits_but_a_head():
    shape = read_shape(BERT, "SEQ_CLS", 3)
    found = need(shape)
    assert found.logits == 0
    per_rank = sum(x.d_in + x.d_out for x in shape.target_layers(shape.default_targets))
    assert found.adapter == 16 * (4 * per_rank + 3 * 384 + 3)


@pytest.mark.parametrize(
    "more",
    [
        {"length": 129},
        {"micro_batch": 9},
        {"k": 5},
        {"predicted": 200, "length": 300},
        {"batch_size": 16},
        {"runtime_bytes": 1},
    ],
    ids=str,
)
def test_every_part_of_the_work_that_costs_memory_raises_the_prediction(more):
    shape = llama_shape()
    assert need(shape, **more).total > need(shape).total


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


def test_total_is_the_sum_of_components_and_none_is_negative():
    found = need(llama_shape(), quantization="nf4", micro_batch=1)
    assert found.total == sum(asdict(found).values())
    assert min(asdict(found).values()) >= 0
    assert replace(found, spike=found.spike + 1).total == found.total + 1


def test_smaller_micro_batches_keep_less():
    shape = llama_shape()
    ways = [need(shape, micro_batch=n).activations for n in (8, 4, 2, 1)]
    assert ways == sorted(ways, reverse=True)
    assert len(set(ways)) == 4
