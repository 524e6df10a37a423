"""The gate turns down what loses, and lets chance turn down little else."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.adoption.gate import judge
from edge_sdk.errors import ConfigError
from edge_sdk.model.scores import Score


def scores(losses, rights=None) -> list[Score]:
    rights = [None] * len(losses) if rights is None else rights
    return [Score(float(loss), right) for loss, right in zip(losses, rights, strict=True)]


def drawn(seed: int, count: int = 12) -> np.ndarray:
    """Losses of examples that differ much from one another."""
    return np.random.default_rng(seed).gamma(4.0, 0.6, count)


def test_an_equal_version_is_accepted():
    verdict = judge(scores(drawn(0)), scores(drawn(0)))
    assert verdict.is_accepted
    assert verdict.loss_before == verdict.loss_after
    assert (verdict.accuracy_before, verdict.accuracy_after) == (None, None)


def test_a_better_version_is_accepted():
    assert judge(scores(drawn(0)), scores(0.9 * drawn(0))).is_accepted


def test_a_version_that_is_a_little_worse_on_every_example_is_turned_down():
    """Hard and easy examples differ by far more, but they are the same ones."""
    assert not judge(scores(drawn(0)), scores(drawn(0) + 0.02)).is_accepted


def test_a_rise_within_rounding_is_no_loss():
    assert judge(scores(drawn(0)), scores(drawn(0) + 5e-4)).is_accepted


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_version_without_a_finite_loss_is_turned_down(bad):
    assert not judge(scores(drawn(0)), scores([*drawn(0)[:-1], bad])).is_accepted


def test_a_version_in_use_without_a_finite_loss_gives_way():
    assert judge(scores([*drawn(0)[:-1], float("inf")]), scores(drawn(0))).is_accepted


@pytest.mark.parametrize(("count", "expected"), [(8, 0.0426), (40, 0.0261)])
def test_chance_turns_down_few_versions_that_are_as_good(count, expected):
    """The new one differs from the old by noise alone: Student's t beyond 2, one side."""
    rng, before = np.random.default_rng(1), drawn(0, count)
    verdicts = [
        judge(scores(before), scores(before + noise)).is_accepted
        for noise in rng.normal(0, 0.2, (1000, count))
    ]
    assert 1 - np.mean(verdicts) == pytest.approx(expected, abs=0.02)


def test_a_classifier_that_is_wrong_more_often_is_turned_down_whatever_its_loss():
    before = scores(drawn(0, 20), [True] * 20)
    after = scores(0.5 * drawn(0, 20), [True] * 12 + [False] * 8)
    verdict = judge(before, after)
    assert not verdict.is_accepted
    assert (verdict.accuracy_before, verdict.accuracy_after) == (1.0, 0.6)


def test_a_classifier_that_is_right_more_often_may_be_surer_where_it_is_wrong():
    before = scores(drawn(0, 20), [True] * 10 + [False] * 10)
    after = scores(drawn(0, 20) + 0.1, [True] * 14 + [False] * 6)
    assert judge(before, after).is_accepted
    alike = scores(drawn(0, 20) + 0.1, [True] * 10 + [False] * 10)
    assert not judge(before, alike).is_accepted


@pytest.mark.parametrize(("old", "new"), [(7, 7), (8, 9), (0, 0)])
def test_it_takes_the_same_examples_and_enough_of_them(old, new):
    with pytest.raises(ConfigError, match="judged by the same 8 or more"):
        judge(scores(drawn(0, old)), scores(drawn(0, new)))
