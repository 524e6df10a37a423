"""What is said of a task with steps too large for its smallest sketch, or too many ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.commands.advice import LEAST_COVERAGE, MAX_REACH, advice, coverage, step_reach
from tests.server.tasks import tiny_spec


def spec(*, alpha=8.0, lr=0.01, steps=5, sizes=(1, 2, 4), cohort=8, optimizer="adamw", **adapter):
    told = tiny_spec(r=8, sketch_sizes=list(sizes), cohort_size=cohort, quorum=cohort)
    return replace(
        told,
        adapter=replace(told.adapter, lora_alpha=alpha, **adapter),
        training=replace(told.training, local_lr=lr, local_steps=steps, optimizer=optimizer),
    )


def test_the_reach_is_that_of_the_smallest_sketch():
    assert step_reach(spec()) == pytest.approx(8.0 / 1 * 5 * 0.01)
    assert step_reach(spec(sizes=(2, 4))) == pytest.approx(8.0 / 2 * 5 * 0.01)
    with_root = step_reach(spec(use_rslora=True))
    assert with_root == pytest.approx(8.0 / 8**0.5 * 8 * 5 * 0.01)


def test_a_task_within_both_bounds_gets_no_advice():
    assert advice(spec()) == []


def test_what_the_advice_names_brings_the_task_within_the_bound():
    unwise = spec(alpha=64.0)
    (said,) = advice(unwise)
    lr = float(said.partition("--local-lr ")[2].split()[0])
    alpha = float(said.partition("--alpha ")[2].split(",")[0])
    assert step_reach(spec(alpha=64.0, lr=lr)) == pytest.approx(MAX_REACH, rel=0.05)
    assert step_reach(spec(alpha=alpha)) == pytest.approx(MAX_REACH, rel=0.05)
    assert advice(spec(alpha=64.0, optimizer="sgd")) == []


def test_ranks_that_most_cohorts_leave_alone_are_named():
    unwise = spec(cohort=3)
    assert coverage(unwise) == 3 / 8
    assert coverage(unwise) < LEAST_COVERAGE
    (said,) = advice(unwise)
    assert "3 devices that train 1 of 8 ranks" in said
    assert "--rank 3" in said
    assert advice(spec(cohort=3, sizes=(4,))) == []


def test_a_task_of_one_device_is_a_trial_and_gets_no_advice():
    assert coverage(spec(cohort=1)) < LEAST_COVERAGE
    assert advice(spec(cohort=1)) == []
