import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.wire.task import AggregationSpec
from server.rules.screening import outliers, update_norm, why_too_large
from tests.server.tasks import random_arrays
from tests.server.updates import ADAPTER

norms_of_a_round = st.lists(st.floats(0, 1e30), max_size=9)


def test_the_norm_is_the_root_mean_square_of_all_numbers():
    arrays = random_arrays(ADAPTER, 3, 0)
    numbers = np.concatenate([array.astype(np.float64).ravel() for array in arrays.values()])
    assert update_norm(arrays) == pytest.approx(math.sqrt(np.mean(numbers**2)), rel=1e-12)


@pytest.mark.parametrize("k", [1, 8])
def test_the_norm_does_not_grow_with_the_sketch_size(k):
    arrays = {name: np.full_like(a, -0.25) for name, a in random_arrays(ADAPTER, k, 0).items()}
    assert update_norm(arrays) == 0.25


def test_the_norm_of_the_largest_and_smallest_numbers_is_exact():
    arrays = {name: np.full_like(a, 1e30) for name, a in random_arrays(ADAPTER, 1, 0).items()}
    assert update_norm(arrays) == pytest.approx(1e30, rel=1e-6)
    arrays = {name: np.full_like(a, 1e-40) for name, a in arrays.items()}
    assert update_norm(arrays) == pytest.approx(1e-40, rel=1e-3)


def test_one_number_grown_by_far_is_seen():
    arrays = random_arrays(ADAPTER, 2, 0)
    before = update_norm(arrays)
    arrays["score.bias"][0] = 1e4
    assert update_norm(arrays) > 1000 * before


def test_an_update_at_the_bound_passes_and_one_above_is_refused_with_both_numbers():
    spec = AggregationSpec(max_norm=0.5)
    assert why_too_large(0.5, spec) is None
    reason = why_too_large(0.75, spec)
    assert "0.75" in reason
    assert "max_norm=0.5" in reason


def test_without_bounds_nothing_is_too_large():
    assert why_too_large(1e300, AggregationSpec()) is None
    assert outliers([1.0, 1.0, 1e30], AggregationSpec()) == [None] * 3


def test_an_outlier_is_named_in_its_place_with_its_numbers():
    spec = AggregationSpec(max_norm_ratio=3.0)
    reasons = outliers([1.0, 7.0, 1.25, 3.0, 1.0], spec)
    assert [reason is None for reason in reasons] == [True, False, True, True, True]
    for number in ("7 of", "3 times", "median 1.25", "5 updates"):
        assert number in reasons[1]


@pytest.mark.parametrize("norms", [[], [5.0], [1.0, 1e6]])
def test_of_fewer_than_three_none_is_the_odd_one_out(norms):
    assert outliers(norms, AggregationSpec(max_norm_ratio=1.5)) == [None] * len(norms)


def test_where_most_sent_zeros_the_others_are_no_outliers():
    assert outliers([0.0, 0.0, 1.0], AggregationSpec(max_norm_ratio=2.0)) == [None] * 3


@given(norms_of_a_round, st.floats(1.0, 100.0))
def test_for_every_round_at_least_half_of_its_updates_are_no_outliers(norms, ratio):
    reasons = outliers(norms, AggregationSpec(max_norm_ratio=ratio))
    assert len(reasons) == len(norms)
    assert 2 * reasons.count(None) >= len(norms)
    for norm, reason in zip(norms, reasons, strict=True):
        if reason is not None:
            assert norm > ratio * statistics.median(norms)


@given(st.floats(0, 1e300), st.floats(1e-300, 1e300))
def test_reasons_fit_into_their_column(norm, bound):
    for reason in (
        why_too_large(norm, AggregationSpec(max_norm=bound)),
        *outliers([norm, bound, bound], AggregationSpec(max_norm_ratio=bound)),
    ):
        assert reason is None or len(reason) <= 200
