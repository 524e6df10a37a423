"""The frozen base: what is quantized, what is refused, what stays quiet."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers.utils import logging as hf_logging

from edge_sdk.errors import ModelError, WrongBaseModel
from edge_sdk.general.base_model import choose_compute_dtype, load_base, verify_layers
from edge_sdk.general.narrow_linear import NarrowLinear, store_as_bf16
from edge_sdk.model.model_folder import read_config
from edge_sdk.model.model_shape import read_shape
from edge_sdk.text.tokenizer import load_tokenizer
from edge_sdk.wire.task import BaseModel, DenseSpec, LayerSpec
from tests.sdk.parts import LABELS, adapter_spec, causal_spec, classifier_spec

IDS = torch.tensor([[3, 7, 11, 4], [9, 8, 20, 21]])


def in_blocks(folder: Path, spec: BaseModel) -> set[str]:
    shape = read_shape(read_config(folder), spec.task_type, len(spec.labels))
    return {layer.name for layer in shape.linears}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


@pytest.fixture
def on_a_plain_cpu(monkeypatch):
    """As on a CPU that has no bf16 units."""
    monkeypatch.setattr(
        "edge_sdk.general.base_model.choose_compute_dtype", lambda *_: torch.float32
    )


@pytest.fixture
def llama_copy(tiny_llama, tmp_path) -> Path:
    """A folder of its own, to be damaged."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


@pytest.mark.parametrize("quantization", ["nf4", "bf16", "fp32"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_base_is_frozen_and_in_evaluation_mode(request, quantization, kind):
    spec = causal_spec() if kind == "llama" else classifier_spec()
    base = load_base(request.getfixturevalue(f"tiny_{kind}"), spec, quantization, threads=1)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not any(module.training for module in base.model.modules())
    assert torch.equal(logits(base.model), logits(base.model))
    assert (base.spec, base.quantization) == (spec, quantization)
    assert base.tokenizer.padding_side == "right"
    assert base.model.config.pad_token_id == base.tokenizer.pad_token_id == 0


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_nf4_quantizes_the_linear_layers_of_the_blocks_and_nothing_else(request, kind):
    folder = request.getfixturevalue(f"tiny_{kind}")
    spec = causal_spec() if kind == "llama" else classifier_spec()
    base = load_base(folder, spec, "nf4", threads=1)
    quantized = {n for n, module in base.model.named_modules() if isinstance(module, Linear4bit)}
    assert quantized == in_blocks(folder, spec)
    states = [base.model.get_submodule(name).weight.quant_state for name in quantized]
    assert {(state.quant_type, state.nested) for state in states} == {("nf4", True)}
    plain = {n for n, m in base.model.named_modules() if type(m) is nn.Linear}
    assert plain == ({"lm_head"} if kind == "llama" else {"bert.pooler.dense", "classifier"})


def test_an_nf4_model_says_nearly_what_the_wide_one_says(loaded_llama, tiny_llama):
    base = load_base(tiny_llama, causal_spec(), "nf4", threads=1)
    wide, narrow = logits(loaded_llama.model), logits(base.model)
    assert not torch.equal(wide, narrow)
    similarity = torch.cosine_similarity(wide.flatten(), narrow.flatten(), dim=0)
    assert similarity > 0.98


@pytest.mark.usefixtures("on_a_plain_cpu")
def test_bf16_is_held_narrow_and_computed_wide_where_the_cpu_has_no_bf16(tiny_llama, loaded_llama):
    base = load_base(tiny_llama, causal_spec(), "bf16", threads=1)
    narrow = {
        n.removesuffix(".weight")
        for n, p in base.model.named_parameters()
        if p.dtype == torch.bfloat16
    }
    assert narrow == in_blocks(tiny_llama, causal_spec())
    assert base.model(input_ids=IDS).logits.dtype == base.compute_dtype == torch.float32
    torch.testing.assert_close(logits(base.model), logits(loaded_llama.model), atol=0.02, rtol=0.02)


def test_a_narrow_layer_equals_its_widened_self_and_keeps_no_widened_copy():
    torch.manual_seed(0)
    model = nn.ModuleDict({"narrow": nn.Linear(6, 5).bfloat16().requires_grad_(False)})
    store_as_bf16(model, ["narrow"], torch.float32)
    layer, x = model["narrow"], torch.randn(3, 6, requires_grad=True)
    wide = nn.Linear(6, 5).requires_grad_(False)
    wide.load_state_dict(layer.state_dict())
    assert isinstance(layer, NarrowLinear)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        y = layer(x)
    assert 5 * 6 not in kept  # whichever way round
    torch.testing.assert_close(y, wide(x))
    y.square().sum().backward()
    found, x.grad = x.grad, None
    wide(x).square().sum().backward()
    torch.testing.assert_close(found, x.grad)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bf16_only_where_it_has_the_units(monkeypatch, native, dtype):
    monkeypatch.setattr("edge_sdk.general.base_model.has_native_bf16", lambda: native)
    assert choose_compute_dtype(torch.device("cpu")) == dtype


def test_a_base_that_computes_in_bf16_can_be_loaded_in_every_format(monkeypatch, tiny_llama):
    monkeypatch.setattr(
        "edge_sdk.general.base_model.choose_compute_dtype", lambda *_: torch.bfloat16
    )
    for quantization in ("nf4", "bf16"):
        base = load_base(tiny_llama, causal_spec(), quantization, threads=1)
        assert base.model(input_ids=IDS).logits.dtype == base.compute_dtype == torch.bfloat16
    base = load_base(tiny_llama, causal_spec(), "fp32", threads=1)
    assert base.model(input_ids=IDS).logits.dtype == base.compute_dtype == torch.float32


def test_gradients_pass_through_a_4bit_base_after_an_evaluation_on_every_cpu(
    monkeypatch, tiny_llama
):
    """On AVX512-BF16, bitsandbytes would repack weights for inference, which have no gradient."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    base = load_base(tiny_llama, causal_spec(), "nf4", threads=1)
    layer = base.model.model.layers[0].mlp.down_proj
    x = torch.randn(2, layer.in_features, requires_grad=True)

    def gradient() -> torch.Tensor:
        x.grad = None
        layer(x).square().sum().backward()
        return x.grad

    before = gradient()
    logits(base.model)
    assert torch.equal(gradient(), before)


def test_loading_prints_nothing_and_restores_the_verbosity(tiny_bert, capfd):
    hf_logging.set_verbosity_info()
    try:
        load_base(tiny_bert, classifier_spec(), "nf4", threads=1)
        assert hf_logging.get_verbosity() == hf_logging.INFO
        assert hf_logging.is_progress_bar_enabled()
    finally:
        hf_logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")


def test_a_classifier_has_the_labels_of_its_task(loaded_bert):
    assert loaded_bert.model.config.id2label == dict(enumerate(LABELS))
    assert logits(loaded_bert.model).shape == (2, 3)


def test_the_thread_count_is_set_only_when_asked_for(tiny_llama):
    torch.set_num_threads(2)
    try:
        load_base(tiny_llama, causal_spec(), "fp32")
        assert torch.get_num_threads() == 2
        load_base(tiny_llama, causal_spec(), "fp32", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(llama_copy):
    path = llama_copy / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    tokenizer = load_tokenizer(llama_copy)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    del config["eos_token"]
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="neither a padding nor an end token"):
        load_tokenizer(llama_copy)


def set_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop_tensor(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors[name]
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def keep_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "no folder": (shutil.rmtree, "config.json cannot be read"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
    "broken configuration": (lambda f: keep_half(f / "config.json"), "config.json cannot be read"),
    "unknown family": (lambda f: set_config(f, model_type="nonesuch"), "nonesuch"),
    "remote code": (
        lambda f: set_config(f, model_type="own", auto_map={"AutoConfig": "own.Own"}),
        "cannot be loaded",
    ),
    "other sizes": (lambda f: set_config(f, hidden_size=64), "cannot be loaded"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "model.safetensors",
    ),
    "truncated weights": (lambda f: keep_half(f / "model.safetensors"), "cannot be loaded"),
    "a missing tensor": (
        lambda f: drop_tensor(f, "model.layers.1.mlp.up_proj.weight"),
        # transformers 4 fails by itself at a quantized one
        r"lack 1 of its tensors, the first is model\.layers\.1\.mlp\.up_proj\.weight|as nf4",
    ),
    "quantized already": (
        lambda f: set_config(f, quantization_config={"quant_method": "gptq"}),
        "already quantized",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    "broken tokenizer": (lambda f: keep_half(f / "tokenizer.json"), "tokenizer"),
}


@pytest.mark.parametrize("quantization", ["nf4", "fp32"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_a_model_error_that_says_what_is_wrong(
    llama_copy, damage, quantization
):
    break_it, text = DAMAGES[damage]
    break_it(llama_copy)
    with pytest.raises(ModelError, match=text):
        load_base(llama_copy, causal_spec(), quantization, threads=1)


def test_only_the_head_of_a_classifier_may_be_missing(tiny_bert, tmp_path):
    """A random pooler would differ on every device and nobody would train it."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "copy"))
    drop_tensor(folder, "pooler.dense.weight")
    with pytest.raises(ModelError, match=r"the first is bert\.pooler\.dense\.weight"):
        load_base(folder, classifier_spec(), "fp32", threads=1)


def test_a_machine_without_bitsandbytes_is_told_to_choose_another_format(monkeypatch, tiny_llama):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"NF4 needs bitsandbytes.*choose bf16 or fp32"):
        load_base(tiny_llama, causal_spec(), "nf4", threads=1)
    load_base(tiny_llama, causal_spec(), "bf16", threads=1)


def test_a_4bit_kernel_that_fails_is_found_while_loading(monkeypatch, tiny_llama):
    def fail(layer: Linear4bit, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image for this device")

    monkeypatch.setattr(Linear4bit, "forward", fail)
    with pytest.raises(ModelError, match=r"cannot compute in NF4.*no kernel image.*choose bf16"):
        load_base(tiny_llama, causal_spec(), "nf4", threads=1)


@pytest.mark.parametrize("quantization", ["nf4", "bf16", "fp32"])
def test_the_layers_of_the_adapter_are_found_in_every_format(tiny_bert, quantization):
    base = load_base(tiny_bert, classifier_spec(), quantization, threads=1)
    verify_layers(base, adapter_spec(tiny_bert, classifier_spec()))


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (LayerSpec(name="bert.encoder.layer.7.output.dense", d_in=32, d_out=64), "nothing"),
        (
            LayerSpec(name="bert.encoder.layer.0.output.dense", d_in=32, d_out=64),
            r"a Linear \(64 -> 32\)",
        ),
        (LayerSpec(name="bert.encoder.layer.0.output.LayerNorm", d_in=32, d_out=32), "a LayerNorm"),
    ],
)
def test_a_layer_that_is_missing_or_differs_is_the_wrong_base_model(
    tiny_bert, loaded_bert, layer, found
):
    good = adapter_spec(tiny_bert, classifier_spec())
    with pytest.raises(WrongBaseModel, match=rf"{layer.name} \(32 -> .* has {found}"):
        verify_layers(loaded_bert, replace(good, layers=[*good.layers, layer]))


@pytest.mark.parametrize(
    ("dense", "found"),
    [
        (DenseSpec(name="score.weight", shape=[3, 32]), "nothing"),
        (DenseSpec(name="classifier.weight", shape=[4, 32]), r"shape \[3, 32\]"),
    ],
)
def test_a_dense_parameter_that_is_missing_or_differs_is_the_wrong_base_model(
    tiny_bert, loaded_bert, dense, found
):
    good = adapter_spec(tiny_bert, classifier_spec())
    with pytest.raises(WrongBaseModel, match=f"{dense.name}.*{found}"):
        verify_layers(loaded_bert, replace(good, dense=[dense]))
