from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rules.rounds import close_round, is_finished, may_open_next, next_state, open_round
from tests.server.tasks import tiny_spec

POLICY = tiny_spec(cohort_size=4, quorum=3, min_updates=2, deadline_s=100.0).policy
OPEN = open_round("tiny", 1, POLICY, now=1000.0)


def test_a_new_round_is_open_and_due_after_its_length():
    assert (OPEN.state, OPEN.opened_at, OPEN.deadline_at) == ("open", 1000.0, 1100.0)


def test_a_round_is_frozen_at_quorum_long_before_its_deadline():
    assert next_state(OPEN, 2, POLICY, now=1000.0) == OPEN
    assert next_state(OPEN, 3, POLICY, now=1000.0).state == "closing"


def test_a_round_is_frozen_at_its_deadline_with_enough_updates_and_not_before():
    assert next_state(OPEN, 2, POLICY, now=1099.9) == OPEN
    assert next_state(OPEN, 2, POLICY, now=1100.0).state == "closing"


def test_a_round_with_too_few_updates_is_prolonged_by_its_length_from_now_on():
    later = next_state(OPEN, 1, POLICY, now=1234.0)
    assert (later.state, later.stretch_at, later.deadline_at) == ("open", 1234.0, 1334.0)
    assert later.opened_at == OPEN.opened_at


def test_a_prolonged_round_can_be_prolonged_again_and_then_closes():
    current = OPEN
    for now in (1100.0, 1200.0, 1300.0):
        current = next_state(current, 1, POLICY, now)
        assert current.state == "open"
    assert next_state(current, 2, POLICY, now=1400.0).state == "closing"


@given(st.integers(0, 4), st.floats(0, 1e6), st.sampled_from(["closing", "closed"]))
def test_a_round_that_is_not_open_never_changes_by_time_or_updates(accepted, now, state):
    frozen = replace(OPEN, state=state)
    assert next_state(frozen, accepted, POLICY, now) == frozen


@given(st.integers(0, 4), st.floats(1000, 1e6))
def test_looking_twice_at_the_same_moment_is_looking_once(accepted, now):
    once = next_state(OPEN, accepted, POLICY, now)
    assert next_state(once, accepted, POLICY, now) == once


def test_a_clock_that_is_set_back_gives_the_round_its_full_length_again():
    """Else a deadline far ahead would hold up a round that does not reach its quorum."""
    later = next_state(OPEN, 2, POLICY, now=10.0)
    assert (later.state, later.stretch_at, later.deadline_at) == ("open", 10.0, 110.0)
    assert next_state(later, 2, POLICY, now=110.0).state == "closing"
    assert next_state(OPEN, 3, POLICY, now=10.0).state == "closing"


def test_only_a_frozen_round_closes_and_keeps_its_version():
    frozen = replace(OPEN, state="closing")
    assert close_round(frozen, 5).adapter_version == 5
    for state in ("open", "closed"):
        with pytest.raises(ValueError, match=state):
            close_round(replace(OPEN, state=state), 5)


def test_the_next_round_waits_until_the_last_is_closed_and_none_follows_the_final_one():
    first, final = OPEN, replace(OPEN, number=POLICY.rounds)
    for state in ("open", "closing"):
        assert not may_open_next(replace(first, state=state), POLICY)
        assert not is_finished(replace(final, state=state), POLICY)
    assert may_open_next(replace(first, state="closed"), POLICY)
    assert not is_finished(replace(first, state="closed"), POLICY)
    assert not may_open_next(replace(final, state="closed"), POLICY)
    assert is_finished(replace(final, state="closed"), POLICY)
