"""Waits of the device: between attempts, while a server is away, and for a slow link."""

from __future__ import annotations

import pytest

from edge_sdk.errors import ConfigError, ServerUnreachable
from edge_sdk.network.bandwidth import Bandwidth, PacedBody
from edge_sdk.network.circuit_breaker import CircuitBreaker
from edge_sdk.network.short_retries import short_retries


class Clock:
    """Seconds as a test says; whoever sleeps turns it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_waits_between_attempts_are_anywhere_below_a_ceiling_that_grows():
    retries = short_retries(9)
    ceilings = []
    for _ in range(6):
        retries = retries.increment("GET", "/", error=OSError())
        waits = [retries.get_backoff_time() for _ in range(300)]
        ceilings.append(max(waits))
        assert min(waits) < 0.1 * max(waits), "full jitter"
    assert ceilings[0] <= 0.6
    assert ceilings[2] > 2 * ceilings[0]
    assert max(ceilings) <= 5.0


def test_a_server_that_does_not_answer_is_left_alone_until_a_probe():
    clock = Clock()
    breaker = CircuitBreaker(clock, jitter=lambda: 1.0)
    for _ in range(5):
        breaker.check()
        breaker.fail()
        clock.now += 2.0
    assert breaker.is_open
    clock.now -= 1.5
    with pytest.raises(ServerUnreachable, match=r"asked again in 0\.5 s"):
        breaker.check()
    waits = []
    for _ in range(9):
        clock.now += breaker.probe_in_s
        breaker.check()
        breaker.fail()
        waits.append(breaker.probe_in_s)
    assert waits[:3] == pytest.approx([2.0, 4.0, 8.0])
    assert waits[-1] == pytest.approx(60.0)
    breaker.succeed()
    breaker.check()
    assert not breaker.is_open


def test_a_restart_of_a_server_is_no_reason_to_leave_it_alone():
    clock = Clock()
    breaker = CircuitBreaker(clock)
    for _ in range(50):
        breaker.check()
        breaker.fail()
        clock.now += 0.05
    assert not breaker.is_open


def test_a_body_is_read_no_faster_than_its_bandwidth():
    clock = Clock()
    bandwidth = Bandwidth(10_000, clock, clock.sleep)
    body = PacedBody(bytes(50_000), bandwidth)
    while body.read(8192):
        pass
    assert clock.now - 100.0 == pytest.approx(5.0 - 0.25)
    assert bandwidth.moved_bytes == 50_000


def test_a_bandwidth_no_round_could_live_with_is_refused():
    with pytest.raises(ConfigError, match="at least 4096"):
        Bandwidth(1000)
