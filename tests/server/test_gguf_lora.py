"""Adapters for llama.cpp: read back with its own reader, and applied to its own row order.

``pair_rows`` is compared with the way a real llama.cpp file is turned back in the demo, which is
written independently, and names with the table of llama.cpp's package.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.errors import ConfigError, StorageError
from edge_sdk.model.model_shape import read_shape
from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.task import DenseSpec
from server.registry.gguf_lora import pair_rows, write_gguf_lora
from tests.server.tasks import random_arrays, tiny_spec

gguf = pytest.importorskip("gguf")

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
MANIFEST = Manifest(
    task="tiny",
    version=3,
    round_number=3,
    parent_version=2,
    parent_digest="0b" * 32,
    base_digest="ab" * 32,
    spec_digest="cd" * 32,
    digest="ef" * 32,
    size_bytes=1000,
    created_at=1.0,
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_task(config=CONFIG, **changes):
    """A task on all linear layers of a model."""
    shape = read_shape(config)
    spec = tiny_spec(dense=False)
    targets = list(shape.default_targets)
    adapter = replace(
        spec.adapter, target_modules=targets, layers=shape.target_layers(targets), **changes
    )
    return replace(spec, adapter=adapter)


def exported(path, config=CONFIG, **changes):
    """Write an adapter; returns the task, its arrays and llama.cpp's view of the file."""
    task = make_task(config, **changes)
    arrays = random_arrays(task.adapter, task.adapter.r, seed=1)
    write_gguf_lora(path, task, arrays, MANIFEST, config)
    return task, arrays, gguf.GGUFReader(path)


def test_every_pair_of_matrices_has_the_name_and_shape_llama_cpp_looks_for(tmp_path):
    task, _, reader = exported(tmp_path / "adapter.gguf")
    shapes = {tensor.name: tuple(tensor.data.shape) for tensor in reader.tensors}
    expected = {}
    for layer in task.adapter.layers:
        _, _, block, inside = layer.name.split(".", 3)
        name = f"blk.{block}.{NAMES[inside]}.weight"
        expected[f"{name}.lora_a"] = (task.adapter.r, layer.d_in)
        expected[f"{name}.lora_b"] = (layer.d_out, task.adapter.r)
    assert shapes == expected
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}


def test_the_product_of_every_pair_is_the_change_of_the_weight_in_the_row_order_of_the_file(
    tmp_path,
):
    from demo.smollm2 import hugging_face_name, unpermute

    task, arrays, reader = exported(tmp_path / "adapter.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    heads = {"q_proj": 4, "k_proj": 2}
    seen = set()
    for name in {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in tensors}:
        change = tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
        layer = hugging_face_name(name).removesuffix(".weight")
        ending = layer.rpartition(".")[2]
        if ending in heads:
            change = unpermute(change, heads[ending])
        product = arrays[f"{layer}.lora_B"] @ arrays[f"{layer}.lora_A"]
        np.testing.assert_allclose(change, product, atol=1e-6)
        seen.add(layer)
    assert seen == {layer.name for layer in task.adapter.layers}


@pytest.mark.parametrize("use_rslora", [False, True])
def test_alpha_over_rank_is_the_scaling_of_the_task(tmp_path, use_rslora):
    task, _, reader = exported(tmp_path / "adapter.gguf", use_rslora=use_rslora)
    alpha = reader.get_field("adapter.lora.alpha").contents()
    r = task.adapter.r
    expected = task.adapter.lora_alpha / (np.sqrt(r) if use_rslora else r)
    assert alpha / r == pytest.approx(expected)


def test_the_file_says_what_it_is_and_which_version(tmp_path):
    _, _, reader = exported(tmp_path / "deep" / "adapter.gguf")
    facts = {name: reader.get_field(name).contents() for name in reader.fields if "." in name}
    assert facts["general.type"] == "adapter"
    assert facts["general.architecture"] == "llama"
    assert facts["adapter.type"] == "lora"
    assert (facts["edge_sdk.task"], facts["edge_sdk.version"]) == ("tiny", 3)
    assert (facts["edge_sdk.round_number"], facts["edge_sdk.digest"]) == (3, "ef" * 32)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["adapter.gguf"]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_families_whose_rows_llama_cpp_leaves_alone_are_written_as_they_are(tmp_path, family):
    config = {**CONFIG, "model_type": family}
    _, arrays, reader = exported(tmp_path / "adapter.gguf", config)
    assert reader.get_field("general.architecture").contents() == family
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, ending in (("attn_q", "q_proj"), ("attn_k", "k_proj")):
        written = tensors[f"blk.1.{name}.weight.lora_b"]
        assert (written == arrays[f"model.layers.1.self_attn.{ending}.lora_B"]).all()


def test_paired_rows_are_neighbours():
    rows = np.arange(16, dtype=np.float32)[:, None]  # two heads of eight rows
    expected = [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert pair_rows(rows, 2)[:, 0].tolist() == expected


def test_a_classifier_head_cannot_be_carried_and_is_refused(tmp_path):
    task = make_task(dense=[DenseSpec(name="score.weight", shape=[2, 32])])
    with pytest.raises(ConfigError, match="classifier head"):
        write_gguf_lora(tmp_path / "a.gguf", task, {}, MANIFEST, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_family_without_a_known_layout_is_refused(tmp_path):
    config = {**CONFIG, "model_type": "gemma"}
    with pytest.raises(ConfigError, match="'gemma'; known: llama"):
        write_gguf_lora(tmp_path / "a.gguf", make_task(), {}, MANIFEST, config)


def test_the_configuration_of_another_model_is_refused(tmp_path):
    config = {**CONFIG, "num_hidden_layers": 3}
    with pytest.raises(ConfigError, match="--base"):
        write_gguf_lora(tmp_path / "a.gguf", make_task(), {}, MANIFEST, config)


def test_a_file_that_cannot_be_written_is_a_storage_error_and_leaves_nothing(tmp_path):
    (tmp_path / "a.gguf").mkdir()
    task = make_task()
    arrays = random_arrays(task.adapter, task.adapter.r, seed=1)
    with pytest.raises(StorageError, match=r"a\.gguf"):
        write_gguf_lora(tmp_path / "a.gguf", task, arrays, MANIFEST, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
