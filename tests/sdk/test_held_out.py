"""Which examples are kept from training depends on each example alone."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.text.example import Example
from edge_sdk.text.held_out import FEWEST, held_out

KEPT = [0, 7, 30, 35, 42, 77, 82, 84, 87, 93, 95, 109, 124, 138, 141, 160, 181]


def examples(count: int, seed: int = 0, label: int | None = None) -> list[Example]:
    rng = np.random.default_rng(seed)
    marks = [False] * 6 + [True] * 6
    return [Example(rng.integers(0, 1000, 12), marks, label) for _ in range(count)]


def test_about_the_share_is_held_out():
    assert sum(held_out(examples(4000), 0.1)) == pytest.approx(400, abs=60)
    assert sum(held_out(examples(4000), 0.25)) == pytest.approx(1000, abs=90)


def test_appended_data_changes_nothing_for_what_was_there():
    before = examples(300)
    after = [*before, *examples(500, seed=1)]
    assert held_out(after)[:300] == held_out(before)


def test_the_order_changes_nothing():
    found = examples(300)
    assert held_out(found[::-1]) == held_out(found)[::-1]


def test_copies_of_an_example_are_on_the_same_side():
    found = examples(200)
    assert held_out([*found, *found])[200:] == held_out(found)


def test_the_answer_is_the_same_on_every_machine():
    """Kept: a release that draws otherwise would train on what was held out before."""
    chosen = [i for i, is_out in enumerate(held_out(examples(200))) if is_out]
    assert chosen == KEPT


@pytest.mark.parametrize("what", ["tokens", "marks", "label"])
def test_tokens_learning_marks_and_label_all_count(what):
    """Examples that differ in one of them alone are not always on the same side."""
    rng = np.random.default_rng(2)
    marks = [[bool(i >> j & 1) for j in range(11)] + [True] for i in range(400)]
    variants = {
        "tokens": [Example(rng.integers(0, 9, 12), marks[0]) for _ in range(400)],
        "marks": [Example(range(12), mark) for mark in marks],
        "label": [Example(range(12), marks[0], i) for i in range(400)],
    }
    assert 0 < sum(held_out(variants[what], 0.25)) < 200


def test_with_too_few_none_is_held_out():
    few = examples(20)
    assert sum(held_out(few, 0.1)) == 0
    assert sum(held_out(few, 0.5)) in (0, *range(FEWEST, 21))


def test_a_share_of_nothing_holds_out_nothing():
    assert not any(held_out(examples(500), 0.0))


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan")])
def test_a_share_that_leaves_too_little_to_train_on_is_refused(share):
    with pytest.raises(ConfigError, match="held_out_share"):
        held_out(examples(10), share)
