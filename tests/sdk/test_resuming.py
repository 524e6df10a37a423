"""A round that goes on from what was kept gives the update of one that nothing disturbed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from edge_sdk.rounds.journal import Journal
from edge_sdk.text.data import load_examples
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import TrainableBase, train_round
from edge_sdk.training.progress import Progress, Steps
from edge_sdk.wire.task import AdapterSpec, TrainingSpec
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

STEPS, K = 5, 4


@dataclass(frozen=True)
class Trainable:
    """A base with what it can be trained on."""

    base: TrainableBase
    adapter: AdapterSpec
    examples: list[Example]


class CutShort(Exception):
    """What a loss of power is to a process."""


@pytest.fixture(params=["lean", "generic", "classifier"])
def trainable(request, tiny_llama, loaded_llama, tmp_path) -> Trainable:
    """Every way of training; the classifier has a dense head beside its ranks."""
    spec = causal_spec()
    if request.param == "classifier":
        spec, base = classifier_spec(), request.getfixturevalue("loaded_bert")
        path = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
        examples = load_examples(path, base.tokenizer, spec, 32)
        folder = request.getfixturevalue("tiny_bert")
        return Trainable(base, adapter_spec(folder, spec), examples)
    path = write_jsonl(tmp_path / "questions.jsonl", QUESTIONS)
    examples = load_examples(path, loaded_llama.tokenizer, spec, 32)
    base = open_base(tiny_llama) if request.param == "lean" else loaded_llama
    return Trainable(base, adapter_spec(tiny_llama, spec), examples)


def train(
    on: Trainable,
    training: TrainingSpec,
    start: Progress | None = None,
    on_progress: Callable[[Steps], None] | None = None,
):
    slices = random_arrays(on.adapter, K)
    return train_round(
        on.base,
        on.adapter,
        K,
        slices,
        training,
        on.examples,
        seed=7,
        micro_batch=2,
        start=start,
        on_progress=on_progress,
    )


def cut_after(step: int, keep: Callable[[Progress], None]) -> Callable[[Steps], None]:
    def cut(steps: Steps) -> None:
        if len(steps.losses) == step:
            keep(steps.progress())
            raise CutShort

    return cut


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_that_goes_on_from_the_journal_gives_the_same_bits(trainable, tmp_path, optimizer):
    """Four of six examples a step, so that the order of the examples counts, too."""
    training = TrainingSpec(
        local_steps=STEPS, local_lr=1e-2, optimizer=optimizer, batch_size=4, weight_decay=0.1
    )
    undisturbed = train(trainable, training)
    for step in (1, 3, STEPS):
        journal = Journal(tmp_path / f"{step}")
        journal.begin("this")
        with pytest.raises(CutShort):
            train(trainable, training, on_progress=cut_after(step, journal.keep_progress))
        start = journal.progress()
        assert start.step == step
        result = train(trainable, training, start)
        assert start.arrays == {}, "their memory is given back"
        assert result.losses == undisturbed.losses
        assert len(result.step_s) == STEPS
        assert result.longest == undisturbed.longest
        for name, array in undisturbed.update.items():
            np.testing.assert_array_equal(result.update[name], array)


def test_progress_of_other_numbers_is_said_and_not_used(trainable, caplog):
    training = TrainingSpec(local_steps=2, batch_size=4)
    undisturbed = train(trainable, training)
    taken: list[Progress] = []
    with pytest.raises(CutShort):
        train(trainable, replace(training, optimizer="sgd"), on_progress=cut_after(1, taken.append))
    with caplog.at_level(logging.WARNING, "edge_sdk"):
        result = train(trainable, training, taken[0])
    assert "starting over" in caplog.text
    assert result.losses == undisturbed.losses
