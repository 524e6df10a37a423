"""Training as a plan says: in micro-batches, and of some target modules only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_sdk.general.base_model import LoadedBase, load_base
from edge_sdk.text.data import load_examples
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import LocalResult, train_round
from edge_sdk.wire.task import TrainingSpec
from tests.sdk.parts import TEXTS, adapter_spec, causal_spec, classifier_spec, random_arrays
from tests.tiny_model import write_jsonl

K = 4
ONE_STEP = TrainingSpec(local_steps=1, batch_size=7, optimizer="sgd", local_lr=1.0)
"""Its update is the negative gradient."""


def learned_examples() -> list[Example]:
    """Seven examples, of which the first has one learned token and the last seven."""
    return [
        Example(
            tokens=[(5 * i + 3 * j) % 30 + 6 for j in range(3 + 2 * i)],
            is_learned=[j >= 2 + i for j in range(3 + 2 * i)],
        )
        for i in range(7)
    ]


@pytest.fixture(scope="module")
def double_llama(tiny_llama) -> LoadedBase:
    base = load_base(tiny_llama, causal_spec(), "fp32", threads=1)
    base.model.double()
    return base


@pytest.fixture(scope="module")
def double_bert(tiny_bert) -> LoadedBase:
    torch.manual_seed(0)  # of the head
    base = load_base(tiny_bert, classifier_spec(), "fp32", threads=1)
    base.model.double()
    return base


@pytest.fixture(scope="module")
def texts(tmp_path_factory, double_bert) -> list[Example]:
    path = write_jsonl(tmp_path_factory.mktemp("data") / "texts.jsonl", [*TEXTS, TEXTS[0]])
    return load_examples(path, double_bert.tokenizer, double_bert.spec, max_length=32)


def train(
    base: LoadedBase,
    folder,
    examples: list[Example],
    training: TrainingSpec = ONE_STEP,
    dtype: type = np.float64,
    **how: object,
) -> LocalResult:
    adapter = adapter_spec(folder, base.spec)
    slices = {
        name: array.astype(dtype) for name, array in random_arrays(adapter, K, seed=1).items()
    }
    return train_round(base, adapter, K, slices, training, examples, seed=3, **how)


def check_equal(parts: LocalResult, whole: LocalResult, tolerance: float) -> None:
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=tolerance)
    assert parts.update.keys() == whole.update.keys()
    for name, array in whole.update.items():
        largest = np.abs(array).max()
        assert largest > 0
        np.testing.assert_allclose(
            parts.update[name], array, rtol=0, atol=tolerance * largest, err_msg=name
        )


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 6])
def test_the_gradient_of_micro_batches_is_that_of_the_batch(double_llama, tiny_llama, micro_batch):
    """Seven examples, so none of the sizes divides the batch; their learned tokens differ."""
    examples = learned_examples()
    assert len({sum(example.is_learned) for example in examples}) == 7
    whole = train(double_llama, tiny_llama, examples)
    check_equal(train(double_llama, tiny_llama, examples, micro_batch=micro_batch), whole, 1e-10)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_of_a_classifier_are_the_batch(double_bert, tiny_bert, texts, micro_batch):
    whole = train(double_bert, tiny_bert, texts)
    check_equal(train(double_bert, tiny_bert, texts, micro_batch=micro_batch), whole, 1e-10)


def test_a_round_in_micro_batches_gives_the_same_update(loaded_llama, tiny_llama):
    """In fp32, as on a device; SGD, because Adam blows up the rounding of what is nearly zero."""
    training = replace(ONE_STEP, local_steps=5, local_lr=0.1, batch_size=4)
    examples = learned_examples()
    whole = train(loaded_llama, tiny_llama, examples, training, np.float32)
    parts = train(loaded_llama, tiny_llama, examples, training, np.float32, micro_batch=3)
    check_equal(parts, whole, 1e-4)


def test_adam_in_micro_batches_takes_one_step_per_batch(double_llama, tiny_llama):
    training = TrainingSpec(local_steps=5, local_lr=1e-2, batch_size=4)
    whole = train(double_llama, tiny_llama, learned_examples(), training)
    parts = train(double_llama, tiny_llama, learned_examples(), training, micro_batch=1)
    assert len(parts.losses) == len(parts.step_s) == 5
    check_equal(parts, whole, 1e-6)


@pytest.mark.parametrize(
    ("micro_batch", "sizes"), [(None, [7]), (3, [3, 3, 1]), (7, [7]), (100, [7])]
)
def test_no_more_examples_than_planned_are_computed_at_once(
    loaded_llama, tiny_llama, micro_batch, sizes
):
    seen = []
    hook = loaded_llama.model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True
    )
    examples = learned_examples()
    train(loaded_llama, tiny_llama, examples, dtype=np.float32, micro_batch=micro_batch)
    hook.remove()
    assert seen == sizes


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_the_result_says_the_longest_text_that_was_trained(loaded_llama, tiny_llama, micro_batch):
    widths = []
    hook = loaded_llama.model.register_forward_pre_hook(
        lambda _, args, inputs: widths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    examples, training = learned_examples(), replace(ONE_STEP, local_steps=2, batch_size=2)
    result = train(
        loaded_llama, tiny_llama, examples, training, np.float32, micro_batch=micro_batch
    )
    hook.remove()
    assert result.longest == max(widths)


def test_targets_left_out_stay_exactly_as_they_are_and_take_part(loaded_llama, tiny_llama):
    examples = learned_examples()
    everything = train(loaded_llama, tiny_llama, examples, dtype=np.float32)
    some = train(
        loaded_llama,
        tiny_llama,
        examples,
        dtype=np.float32,
        trained_targets=("q_proj", "down_proj"),
    )
    assert some.losses == everything.losses, "the others' ranks are in the forward pass"
    adapter = adapter_spec(tiny_llama, causal_spec())
    moved = set()
    for layer in adapter.layers:
        for name in (f"{layer.name}.lora_A", f"{layer.name}.lora_B"):
            if layer.ending in ("q_proj", "down_proj"):
                np.testing.assert_array_equal(some.update[name], everything.update[name])
            if np.any(some.update[name]):
                moved.add(layer.ending)
            assert np.any(everything.update[name])
    assert len(adapter.target_modules) > 2
    assert moved == {"q_proj", "down_proj"}


def test_weight_decay_does_not_reach_targets_left_out(loaded_llama, tiny_llama):
    training = TrainingSpec(local_steps=2, weight_decay=0.5)
    result = train(
        loaded_llama,
        tiny_llama,
        learned_examples(),
        training,
        np.float32,
        trained_targets=["q_proj"],
    )
    for name, array in result.update.items():
        assert np.any(array) == ("q_proj" in name)


def test_a_classifiers_head_is_trained_whatever_targets_are_left(loaded_bert, tiny_bert, texts):
    result = train(loaded_bert, tiny_bert, texts, dtype=np.float32, trained_targets=["query"])
    assert {name for name, x in result.update.items() if np.any(x)} == {
        name for name in result.update if "query" in name or name.startswith("classifier")
    }
