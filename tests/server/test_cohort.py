import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ConfigError
from server.cohort import choose_sketch_size, has_free_seat
from tests.server.tasks import tiny_spec

POLICY = tiny_spec(cohort_size=2, quorum=2, sketch_sizes=[2, 4, 8]).policy


@given(st.integers(2, 100))
def test_a_device_gets_the_largest_size_it_can_afford(affordable_k):
    k = choose_sketch_size(POLICY, affordable_k)
    assert k <= affordable_k
    assert all(other <= k or other > affordable_k for other in POLICY.sketch_sizes)


def test_a_device_below_the_smallest_size_is_told_which_that_is():
    with pytest.raises(ConfigError, match=r"affordable_k=1 .* k=2"):
        choose_sketch_size(POLICY, 1)


def test_a_cohort_takes_its_size_and_no_more():
    assert has_free_seat(POLICY, {}, set(), 10.0)
    assert has_free_seat(POLICY, {"a": 10.0}, set(), 10.0)
    assert not has_free_seat(POLICY, {"a": 10.0, "b": 11.0}, set(), 10.0)


def test_a_device_that_let_a_whole_stretch_pass_gives_up_its_seat():
    assert has_free_seat(POLICY, {"a": 9.9, "b": 11.0}, set(), 10.0)


def test_an_accepted_update_keeps_its_seat_through_every_stretch():
    assert not has_free_seat(POLICY, {"a": 1.0, "b": 11.0}, {"a"}, 10.0)
