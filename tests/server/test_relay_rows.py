"""What the rows of relays say of places and members, the same in SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.server.store_rows import ASSIGNMENT, TASK, UPDATE, device_row, fill

RELAY = replace(device_row("r"), relay_for=5)
SUM = replace(
    UPDATE,
    device_id="r",
    loss=0.4,
    members=3,
    weight=7.25,
    rank_members=np.arange(16, dtype="<u4").tobytes(),
)


@pytest.fixture
def rows(store):
    """The usual rows, with one update, and a relay with places for five."""
    fill(store)
    with store.write() as tx:
        tx.add_device(RELAY)
        tx.add_assignment(replace(ASSIGNMENT, device_id="r", members=5, assigned_at=9.0))
    return store


def test_rows_of_a_relay_come_back_as_they_were(rows):
    with rows.write() as tx:
        tx.add_update(SUM)
        tx.add_task(replace(TASK, name="relayed", is_relayed=True))
    with rows.read() as tx:
        assert tx.device("r") == RELAY
        assert tx.assignment("tiny", 1, "r").members == 5
        assert tx.accepted("tiny", 1, "r") == SUM
        assert tx.accepted("tiny", 1, "a").rank_members is None
        assert [tx.task(name).is_relayed for name in ("relayed", "tiny")] == [True, False]


def test_a_relay_has_as_many_places_as_it_may_use_and_then_as_it_used(rows):
    with rows.read() as tx:
        assert (tx.count_seats("tiny", 1, 9.0), tx.count_assignments("tiny", 1)) == (6, 6)
        assert tx.count_seats("tiny", 1, 9.5) == 1, "given up with the first deadline"
        assert tx.count_updates("tiny", 1) == 1
    with rows.write() as tx:
        tx.add_update(SUM)
    with rows.read() as tx:
        assert tx.count_seats("tiny", 1, 9.5) == 4
        assert tx.count_updates("tiny", 1) == 4
        assert tx.mean_losses("tiny") == {1: (4, pytest.approx((0.1 + 3 * 0.4) / 4))}
    with rows.write() as tx:
        tx.quarantine(SUM, "too large")
    with rows.read() as tx:
        assert (tx.count_seats("tiny", 1, 9.5), tx.count_updates("tiny", 1)) == (1, 1)


def test_places_are_reserved_for_relays_that_may_still_ask_for_them(rows):
    with rows.write() as tx:
        tx.add_device(replace(device_row("s"), relay_for=4))
        tx.add_device(replace(device_row("t"), relay_for=2))
        tx.add_device(replace(device_row("gone"), relay_for=3, revoked_at=1.0))
    with rows.read() as tx:
        assert tx.count_reserved("tiny", 1, most=5) == 6
        assert tx.count_reserved("tiny", 1, most=3) == 2, "too large to ever fit"
        assert tx.count_reserved("tiny", 2, most=5) == 11
        assert tx.count_reserved("tiny", 2, most=1) == 0
