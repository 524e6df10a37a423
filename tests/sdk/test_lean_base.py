"""A round on a lean base: repeatable, refused where it does not fit, and the base unchanged."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from edge_sdk.errors import AdapterError, LossDiverged, ModelError, OutOfMemory, WrongBaseModel
from edge_sdk.lean.agreement import LEAST_COSINE, layer_agreement
from edge_sdk.lean.base import LeanBase
from edge_sdk.lean.frozen import Int8Matrix, Nf4Matrix, PlainMatrix
from edge_sdk.lean.llama import HEAD, input_groups
from edge_sdk.lean.ranks import Ranks
from edge_sdk.training.local_steps import LocalResult, train_round
from edge_sdk.wire.task import DenseSpec, LayerSpec, TrainingSpec
from tests.sdk.lean_parts import (
    K,
    adapter_of,
    distance,
    double_gradients,
    examples_of,
    lean_gradients,
    open_base,
    save_family,
)
from tests.sdk.parts import random_arrays

FORMATS = [
    ("fp32", "wide"),
    ("fp32", "int8"),
    ("nf4", "wide"),
    ("int8", "wide"),
    ("nf4", "int8"),
    ("int8", "int8"),
]
TRAINING = TrainingSpec(local_steps=4, batch_size=3, local_lr=1e-2)
OUTLIER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_family(tmp_path_factory.mktemp("model") / "llama", "llama", layers=2)


@pytest.fixture
def own_folder(tmp_path) -> Path:
    """One to change."""
    return save_family(tmp_path / "llama", "llama", layers=2)


def change(folder: Path, **changes) -> None:
    """Apply a function to some tensors of a model."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    for name, how in changes.items():
        how(tensors[name])
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def train(
    base: LeanBase, folder: Path, training: TrainingSpec = TRAINING, seed: int = 3, **how: object
) -> LocalResult:
    adapter = adapter_of(folder)
    slices = random_arrays(adapter, K)
    return train_round(base, adapter, K, slices, training, examples_of(), seed, **how)


def tensors_of(base: LeanBase) -> dict[str, torch.Tensor]:
    found = dict(base.prepared.vectors)
    for name, matrix in base.prepared.matrices.items():
        match matrix:
            case PlainMatrix(values):
                found[name] = values
            case Int8Matrix(values, scale):
                found |= {name: values, f"{name} scale": scale}
            case Nf4Matrix(packed, absmax):
                found |= {name: packed, f"{name} absmax": absmax}
    return found


@pytest.mark.parametrize(("quantization", "products"), FORMATS)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_bits_and_leaves_the_base_as_it_was(
    folder, quantization, products, threads
):
    torch.set_num_threads(threads)
    base = open_base(folder, quantization, products)
    torch.set_num_threads(threads)
    before = {name: x.clone() for name, x in tensors_of(base).items()}
    first = train(base, folder, micro_batch=2, recomputed_blocks=1)
    again = train(base, folder, micro_batch=2, recomputed_blocks=1)
    fresh = open_base(folder, quantization, products)
    torch.set_num_threads(threads)
    elsewhere = train(fresh, folder, micro_batch=2, recomputed_blocks=1)
    torch.set_num_threads(1)
    for other in (again, elsewhere):
        assert other.losses == first.losses
        for name, x in first.update.items():
            np.testing.assert_array_equal(other.update[name], x)
            assert np.any(x)
    assert train(base, folder, seed=4).losses != first.losses
    assert all(torch.equal(x, before[name]) for name, x in tensors_of(base).items())


@pytest.mark.parametrize(("quantization", "products"), FORMATS)
def test_training_lowers_the_loss(folder, quantization, products):
    training = TrainingSpec(local_steps=25, batch_size=5, local_lr=1e-2)
    losses = train(open_base(folder, quantization, products), folder, training).losses
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (LayerSpec(name="model.layers.7.mlp.up_proj", d_in=64, d_out=128), "nothing"),
        (LayerSpec(name="model.layers.0.mlp.up_proj", d_in=63, d_out=128), "a layer 64 -> 128"),
        (LayerSpec(name="lm_head", d_in=64, d_out=96), "nothing"),
    ],
)
def test_a_layer_that_is_missing_or_differs_is_the_wrong_base_model(folder, layer, found):
    adapter = replace(adapter_of(folder, ("up_proj",)), layers=[layer])
    base, slices = open_base(folder), {}
    with pytest.raises(WrongBaseModel, match=rf"{layer.name} \({layer.d_in} -> .* has {found}"):
        train_round(base, adapter, K, slices, TRAINING, examples_of(), seed=0)


def test_a_task_that_trains_a_head_has_the_wrong_base_model(folder):
    adapter = replace(adapter_of(folder), dense=[DenseSpec(name="score.weight", shape=[3, 64])])
    with pytest.raises(WrongBaseModel, match=r"trains score\.weight"):
        open_base(folder).verify_layers(adapter)


def test_slices_of_another_sketch_are_refused_before_the_first_step(folder):
    adapter, steps = adapter_of(folder), []
    with pytest.raises(AdapterError):
        train_round(
            open_base(folder),
            adapter,
            K,
            random_arrays(adapter, K - 1),
            TRAINING,
            examples_of(),
            0,
            on_step=lambda *x: steps.append(x),
        )
    assert steps == []


@pytest.mark.parametrize(("quantization", "products"), FORMATS)
def test_a_step_size_that_is_too_large_diverges_and_the_base_can_go_on(
    folder, quantization, products
):
    base = open_base(folder, quantization, products)
    expected = train(base, folder)
    with pytest.raises(LossDiverged, match=r"local step 2 of 4: lower local_lr=1e\+20") as caught:
        train(base, folder, replace(TRAINING, local_lr=1e20))
    assert caught.value.step == 2
    after = train(base, folder)
    assert all(np.array_equal(after.update[name], x) for name, x in expected.update.items())


@pytest.mark.parametrize("products", ["wide", "int8"])
@pytest.mark.parametrize("name", ["model.layers.0.input_layernorm.weight", "model.norm.weight"])
def test_weights_that_are_not_finite_are_a_diverged_loss(own_folder, products, name):
    change(own_folder, **{name: lambda x: x[3].fill_(float("nan"))})
    base = open_base(own_folder, "bf16", products)
    with pytest.raises(LossDiverged, match="local step 1") as caught:
        train(base, own_folder)
    assert caught.value.step == 1


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_weights_that_are_not_finite_are_a_model_error(own_folder, quantization):
    change(own_folder, **{f"{OUTLIER}.weight": lambda x: x[3, 3].fill_(float("inf"))})
    with pytest.raises(ModelError, match=f"{OUTLIER}.*NaN or infinity"):
        open_base(own_folder, quantization)


def test_memory_that_runs_out_says_what_was_tried(folder):
    def allocate(step: int, loss: float) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    with pytest.raises(OutOfMemory, match="training 4 ranks on 2 examples at once"):
        train(open_base(folder), folder, micro_batch=2, on_step=allocate)


@pytest.fixture
def outlying(own_folder) -> Path:
    """One input of one layer is giant, and nothing of it comes out: integers drown in it."""
    up = OUTLIER.replace("down", "up")
    gate = OUTLIER.replace("down", "gate")
    change(
        own_folder,
        **{
            f"{up}.weight": lambda x: x[5].mul_(1e4),
            f"{gate}.weight": lambda x: x[5].mul_(10),
            f"{OUTLIER}.weight": lambda x: x[:, 5].zero_(),
        },
    )
    return own_folder


@pytest.mark.parametrize("quantization", ["bf16", "int8"])
def test_a_layer_whose_integers_drown_in_an_outlier_is_exempt_and_no_other(
    outlying, quantization, caplog
):
    base = open_base(outlying, quantization, "int8")
    adapter = adapter_of(outlying, ("q_proj", "v_proj"))
    slices, examples = random_arrays(adapter, K), examples_of()
    ranks = Ranks(adapter, slices, 4.0, None, input_groups(2))
    agreement = layer_agreement(base.passes(64, "wide"), ranks, examples)
    assert set(agreement) == {*base.passes(8).linear_names, HEAD}
    assert agreement.pop(OUTLIER) < 0.9 < LEAST_COSINE < min(agreement.values())
    assert all(not x.grad.any() for x in ranks.parameters())
    with caplog.at_level(logging.INFO, "edge_sdk"):
        found = lean_gradients(base, adapter, slices, examples)
    assert base.exempt == frozenset({OUTLIER})
    assert "too coarse for 1 of 15 layers" in caplog.text
    exact = double_gradients(base, adapter, slices, examples)
    drowned = replace(base, exempt=frozenset())
    assert (
        distance(found, exact)
        < 0.1
        < distance(lean_gradients(drowned, adapter, slices, examples), exact)
    )


def test_exemption_is_decided_once_and_only_for_products_of_integers(folder, monkeypatch):
    tried = []

    def noted(*arguments):
        tried.append(1)
        return layer_agreement(*arguments)

    monkeypatch.setattr("edge_sdk.lean.base.layer_agreement", noted)
    wide, integer = open_base(folder, "nf4", "wide"), open_base(folder, "nf4", "int8")
    train(wide, folder)
    assert (wide.exempt, tried) == (None, [])
    train(integer, folder)
    train(integer, folder)
    assert (integer.exempt, tried) == (frozenset(), [1])


def test_an_agreement_that_is_not_a_number_is_no_agreement(folder, monkeypatch):
    monkeypatch.setattr(
        "edge_sdk.lean.base.layer_agreement", lambda *_: {OUTLIER: float("nan"), HEAD: 1.0}
    )
    base = open_base(folder, "nf4", "int8")
    train(base, folder)
    assert base.exempt == frozenset({OUTLIER})
