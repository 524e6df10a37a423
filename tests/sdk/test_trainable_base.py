"""Lean where the passes know the model, generic elsewhere; integers only in the lean ones."""

from __future__ import annotations

import pytest
import torch

from edge_sdk.compute.execution import Execution
from edge_sdk.errors import ModelError
from edge_sdk.general.base_model import LoadedBase
from edge_sdk.lean.base import LeanBase
from edge_sdk.training.trainable_base import load_trainable, warm_up_for
from tests.sdk.parts import causal_spec, classifier_spec
from tests.tiny_model import save_tiny_neox


def execution(quantization: str = "fp32", products: str = "wide") -> Execution:
    return Execution(
        quantization=quantization,
        products=products,
        micro_batch=1,
        recomputed_blocks=0,
        length=32,
        trained_targets=("q_proj",),
        k=4,
    )


@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16", "fp32"])
@pytest.mark.parametrize("products", ["wide", "int8"])
def test_a_llama_is_lean_in_every_format(tiny_llama, quantization, products):
    base = load_trainable(tiny_llama, causal_spec(), execution(quantization, products), threads=1)
    assert isinstance(base, LeanBase)
    assert (base.quantization, base.products) == (quantization, products)


@pytest.mark.parametrize("quantization", ["nf4", "bf16", "fp32"])
def test_a_bert_is_generic(tiny_bert, quantization):
    base = load_trainable(tiny_bert, classifier_spec(), execution(quantization), threads=1)
    assert isinstance(base, LoadedBase)
    assert base.quantization == quantization


def test_a_causal_lm_of_another_family_and_a_llama_that_classifies_are_generic(
    tmp_path, tiny_llama
):
    neox = save_tiny_neox(tmp_path / "neox")
    assert isinstance(load_trainable(neox, causal_spec(), execution()), LoadedBase)
    assert isinstance(load_trainable(tiny_llama, classifier_spec(), execution()), LoadedBase)


@pytest.mark.parametrize(("quantization", "products"), [("int8", "wide"), ("nf4", "int8")])
def test_integers_for_a_generic_model_are_one_model_error(tiny_bert, quantization, products):
    text = "8-bit integers work in the hand-written passes alone, and the blocks of a bert model"
    with pytest.raises(ModelError, match=text):
        load_trainable(tiny_bert, classifier_spec(), execution(quantization, products))


def test_where_there_is_a_gpu_a_llama_is_generic(tiny_llama, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ModelError, match=r"they run on a CPU alone: choose nf4, bf16 or fp32"):
        load_trainable(tiny_llama, causal_spec(), execution("nf4", "int8"))


def test_a_folder_without_a_model_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        load_trainable(tmp_path, causal_spec(), execution())
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        warm_up_for(tmp_path, causal_spec(), execution(), threads=1)


def test_the_thread_count_is_set_only_when_asked_for(tiny_llama):
    torch.set_num_threads(2)
    try:
        load_trainable(tiny_llama, causal_spec(), execution())
        assert torch.get_num_threads() == 2
        load_trainable(tiny_llama, causal_spec(), execution(), threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_warming_up_works_for_both_kinds(request, kind):
    spec = causal_spec() if kind == "llama" else classifier_spec()
    warm_up_for(request.getfixturevalue(f"tiny_{kind}"), spec, execution(), threads=1)
