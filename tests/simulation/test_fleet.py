"""A made-up fleet is what the file says, the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from simulation.fleet import DAY_S, Fleet
from tests.simulation.files import stand_ins

NOBODY = np.array([], dtype=np.int64)


def fleet(count: int = 1000, seed: int = 0, **changes) -> Fleet:
    return Fleet(stand_ins(fleet=changes).fleet, count, seed)


def test_classes_have_their_shares_of_the_devices():
    assert np.bincount(fleet(1000).k).tolist() == [0, 500, 250, 0, 250]
    assert np.bincount(fleet(10).k).sum() == 10


def test_speed_goes_with_the_class():
    made = fleet()
    assert set(zip(made.k.tolist(), made.step_s.tolist(), strict=True)) == {
        (1, 4.0),
        (2, 2.0),
        (4, 1.0),
    }


def test_another_seed_is_another_fleet_and_the_same_seed_the_same():
    assert (fleet(seed=1).k == fleet(seed=1).k).all()
    assert (fleet(seed=1).k != fleet(seed=2).k).any()


def test_the_share_of_the_day_is_the_share_of_the_devices_that_are_there():
    made = fleet(20_000, hours_per_day=6.0)
    for hour in (0, 7, 30):
        assert (made.left_s(3600.0 * hour) > 0).mean() == pytest.approx(0.25, abs=0.02)


def test_a_device_is_there_once_a_day_and_for_as_long_as_it_says():
    made = fleet(50, hours_per_day=6.0)
    now = 1000.0
    left = made.left_s(now)
    there = left > 0
    assert (left <= 6 * 3600).all()
    for device in np.flatnonzero(there)[:5]:
        assert made.left_s(now + left[device] - 1)[device] == pytest.approx(1.0)
        assert made.left_s(now + left[device] + 1)[device] == 0.0
    np.testing.assert_allclose(made.left_s(now + DAY_S), left, atol=1e-6)


def test_who_asks_is_drawn_anew_for_every_cohort_among_those_without_work():
    made = fleet(100)
    first, again, second = (made.ready(0.0, NOBODY, 10, draw) for draw in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert set(first.tolist()) != set(second.tolist())
    rest = made.ready(0.0, first, 100, 0)
    assert sorted([*first, *rest]) == list(range(100))


def test_the_share_of_lost_devices_is_the_dropout():
    made = fleet(10_000, dropout=0.3)
    everyone = np.arange(10_000)
    assert made.is_lost(everyone, 0).mean() == pytest.approx(0.3, abs=0.02)
    assert not fleet(100).is_lost(np.arange(100), 0).any()
