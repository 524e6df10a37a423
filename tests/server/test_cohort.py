import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ConfigError
from server.rules.cohort import choose_sketch_size
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
