"""The proximal pull and the scores of single examples, on both kinds of base."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.errors import AdapterError
from edge_sdk.general.evaluation import classification_accuracy, completion_loss
from edge_sdk.general.lora import attach
from edge_sdk.sketch import sketched_scaling
from edge_sdk.text.data import load_examples
from edge_sdk.training.local_steps import Pull, train_round
from edge_sdk.wire.task import TrainingSpec
from tests.sdk.lean_parts import open_base
from tests.sdk.parts import (
    QUESTIONS,
    TEXTS,
    adapter_spec,
    causal_spec,
    classifier_spec,
    random_arrays,
)
from tests.tiny_model import write_jsonl

R = 8
LR = 1e-2


@pytest.fixture(params=["generic", "lean"])
def base(request, tiny_llama, loaded_llama):
    return loaded_llama if request.param == "generic" else open_base(tiny_llama)


@pytest.fixture(scope="module")
def examples(tiny_llama, loaded_llama, tmp_path_factory):
    path = write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", QUESTIONS)
    return load_examples(path, loaded_llama.tokenizer, causal_spec(), max_length=32)


@pytest.fixture
def adapter(tiny_llama):
    return adapter_spec(tiny_llama, causal_spec(), r=R)


def trained(base, adapter, examples, optimizer, strength, steps=1):
    """Start, end and goal of some steps; no pull with a strength of None."""
    start, goal = random_arrays(adapter, R, seed=1), random_arrays(adapter, R, seed=2)
    training = TrainingSpec(local_steps=steps, local_lr=LR, batch_size=3, optimizer=optimizer)
    pull = None if strength is None else Pull(towards=goal, strength=strength)
    update = train_round(base, adapter, R, start, training, examples, 4, pull=pull).update
    return start, {name: start[name] + update[name] for name in start}, goal


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_pull_of_strength_zero_is_plain_local_training(base, adapter, examples, optimizer):
    _, plain, _ = trained(base, adapter, examples, optimizer, None, steps=3)
    _, pulled, _ = trained(base, adapter, examples, optimizer, 0.0, steps=3)
    for name, array in plain.items():
        np.testing.assert_array_equal(pulled[name], array)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_pull_without_bound_ends_at_the_goal(base, adapter, examples, optimizer):
    _, found, goal = trained(base, adapter, examples, optimizer, 1e9, steps=3)
    for name, array in goal.items():
        np.testing.assert_allclose(found[name], array, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_step_is_the_equation(base, adapter, examples, optimizer):
    """``v <- v - lr * lambda * (v - w)`` behind the optimizer's step, which does not see it."""
    _, v, w = trained(base, adapter, examples, optimizer, None)
    _, found, _ = trained(base, adapter, examples, optimizer, 10.0)
    for name in w:
        expected = v[name] - LR * 10.0 * (v[name] - w[name])
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_targets_that_are_not_trained_are_not_pulled(base, adapter, examples):
    start, goal = random_arrays(adapter, R, seed=1), random_arrays(adapter, R, seed=2)
    training = TrainingSpec(local_steps=1, local_lr=LR, batch_size=3)
    update = train_round(
        *(base, adapter, R, start, training, examples, 4),
        trained_targets=("q_proj",),
        pull=Pull(towards=goal, strength=10.0),
    ).update
    moved = {name for name, change in update.items() if np.any(change)}
    assert moved == {name for name in update if ".q_proj." in name}


def test_a_goal_of_another_shape_is_refused_before_anything_moves(base, adapter, examples):
    start = random_arrays(adapter, R)
    goal = random_arrays(replace(adapter, r=4), 4)
    with pytest.raises(AdapterError, match="with k=8"):
        train_round(
            *(base, adapter, R, start, TrainingSpec(), examples, 4),
            pull=Pull(towards=goal, strength=1.0),
        )


@pytest.mark.parametrize("factors", ["A", "B"])
def test_a_factor_that_is_not_trained_stays_and_the_other_moves_as_it_does_alone(
    base, adapter, examples, factors
):
    """The first step sees the same gradients, whichever factors it moves."""
    start = random_arrays(adapter, R, seed=3)
    training = TrainingSpec(local_steps=1, local_lr=0.01, batch_size=2)
    both, one = (
        train_round(base, adapter, R, start, training, examples, 4, factors=which).update
        for which in ("AB", factors)
    )
    for name, change in one.items():
        expected = both[name] if name.endswith(f".lora_{factors}") else 0 * both[name]
        np.testing.assert_array_equal(change, expected, err_msg=name)
        assert both[name].any()


def test_dense_parameters_learn_whatever_factors_do(tiny_bert, loaded_bert, tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", TEXTS)
    texts = load_examples(path, loaded_bert.tokenizer, classifier_spec(), max_length=32)
    adapter = adapter_spec(tiny_bert, classifier_spec(), r=R)
    start = random_arrays(adapter, R, seed=3)
    training = TrainingSpec(local_steps=1, local_lr=0.01, batch_size=2)
    update = train_round(loaded_bert, adapter, R, start, training, texts, 4, factors="B").update
    assert all(update[dense.name].any() for dense in adapter.dense)


def test_a_scale_of_ones_own_takes_the_place_of_the_sketchs(base, adapter, examples):
    start = random_arrays(adapter, R // 2, seed=3)
    training = TrainingSpec(local_steps=2, local_lr=0.01, batch_size=2)
    own = sketched_scaling(adapter.lora_alpha, R, R // 2, adapter.use_rslora)
    plain, same, other = (
        train_round(base, adapter, R // 2, start, training, examples, 4, scale=scale).update
        for scale in (None, own, own / 2)
    )
    assert all(np.array_equal(plain[name], same[name]) for name in plain)
    assert not all(np.array_equal(plain[name], other[name]) for name in plain)


def scores_of(base, adapter, arrays, examples, at_once=1):
    scale = sketched_scaling(adapter.lora_alpha, R, R, adapter.use_rslora)
    trainee = base.trainee(adapter, arrays, scale, (), examples, at_once, 0)
    try:
        assert len(trainee.parameters()) == len(adapter.dense), "no rank has room for a gradient"
        return list(trainee.scores(examples))
    finally:
        trainee.detach()


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_scores_of_examples_are_the_losses_of_each_alone(
    base, adapter, examples, loaded_llama, at_once
):
    arrays = random_arrays(adapter, R, seed=3)
    found = scores_of(base, adapter, arrays, examples, at_once)
    scale = sketched_scaling(adapter.lora_alpha, R, R, adapter.use_rslora)
    attached = attach(loaded_llama.model, adapter, arrays, scale)
    expected = [completion_loss(loaded_llama, [example]) for example in examples]
    attached.detach()
    np.testing.assert_allclose([score.loss for score in found], expected, rtol=1e-5)
    assert {score.is_right for score in found} == {None}


def test_an_adapter_of_zeros_scores_like_the_base_alone(base, adapter, examples, loaded_llama):
    zeros = {name: 0 * array for name, array in random_arrays(adapter, R).items()}
    found = scores_of(base, adapter, zeros, examples)
    expected = [completion_loss(loaded_llama, [example]) for example in examples]
    np.testing.assert_allclose([score.loss for score in found], expected, rtol=1e-5)


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_classifier_says_which_labels_are_right(tiny_bert, loaded_bert, tmp_path, at_once):
    path = write_jsonl(tmp_path / "data.jsonl", TEXTS)
    texts = load_examples(path, loaded_bert.tokenizer, classifier_spec(), max_length=32)
    adapter = adapter_spec(tiny_bert, classifier_spec(), r=R)
    arrays = random_arrays(adapter, R, seed=3)
    found = scores_of(loaded_bert, adapter, arrays, texts, at_once)
    scale = sketched_scaling(adapter.lora_alpha, R, R, adapter.use_rslora)
    attached = attach(loaded_bert.model, adapter, arrays, scale)
    accuracy = classification_accuracy(loaded_bert, texts)
    loss = completion_loss(loaded_bert, texts)
    attached.detach()
    assert np.mean([score.is_right for score in found]) == pytest.approx(accuracy)
    assert np.mean([score.loss for score in found]) == pytest.approx(loss, rel=1e-5)
