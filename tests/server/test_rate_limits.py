"""Requests are counted per key, within bounded memory."""

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import TooManyRequests
from server.http.rate_limits import RateLimit, address_of
from tests.server.tasks import TurnedClock


def allowed(limit, key="a"):
    try:
        limit.take(key)
    except TooManyRequests:
        return False
    return True


def test_a_minutes_requests_may_come_at_once_and_no_more():
    limit = RateLimit(5, TurnedClock())
    assert [allowed(limit) for _ in range(7)] == [True] * 5 + [False] * 2


def test_who_waits_as_long_as_told_may_ask_again():
    clock = TurnedClock()
    limit = RateLimit(6, clock)
    while allowed(limit):
        pass
    with pytest.raises(TooManyRequests) as refused:
        limit.take("a")
    assert refused.value.retry_after_s == pytest.approx(10.0)
    clock.now += refused.value.retry_after_s - 0.01
    assert not allowed(limit)
    clock.now += 0.01
    assert [allowed(limit), allowed(limit)] == [True, False]


def test_one_key_does_not_use_up_what_another_may():
    limit = RateLimit(1, TurnedClock())
    assert [allowed(limit, key) for key in "aabb"] == [True, False, True, False]


@given(st.integers(1, 50), st.lists(st.floats(0, 30), max_size=120))
def test_in_no_minute_more_than_twice_the_limit_is_let_in(per_min, pauses):
    """One minute's worth saved up, and one minute's worth that grew meanwhile."""
    clock = TurnedClock(0.0)
    limit = RateLimit(per_min, clock)
    times = []
    for pause in pauses:
        clock.now += pause
        if allowed(limit):
            times.append(clock.now)
    for start in times:
        assert sum(start <= at < start + 60 for at in times) <= 2 * per_min


def test_keys_that_rest_are_forgotten():
    clock = TurnedClock()
    limit = RateLimit(600, clock)
    for i in range(10_000):
        clock.now += 1
        limit.take(str(i))
    assert len(limit._rested_at) <= 1100


@pytest.mark.parametrize(
    ("host", "counted_for"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::2", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("testclient", "testclient"),
    ],
)
def test_an_ipv6_network_is_counted_as_one_address(host, counted_for):
    request = Request({"type": "http", "headers": [], "client": (host, 1)})
    assert address_of(request) == counted_for
    assert address_of(Request({"type": "http", "headers": [], "client": None})) == ""
