"""What both databases say of seats, draws and versions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.storage.sql_store import open_store
from tests.databases import fresh_database
from tests.server.store_rows import ADAPTER, ASSIGNMENT, ROUND, TASK, UPDATE, device_row, fill


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    if request.param == "sqlite":
        opened = open_store(f"sqlite:///{tmp_path / 'server.sqlite'}")
        yield opened
        opened.close()
    else:
        with fresh_database(request.getfixturevalue("postgres")) as address:
            opened = open_store(address)
            yield opened
            opened.close()


def add_work(tx, device_id, assigned_at, **where):
    row = replace(ASSIGNMENT, device_id=device_id, assigned_at=assigned_at, **where)
    tx.add_assignment(row)
    return row


def seats(store, stretch_at, number=1):
    with store.read() as tx:
        return tx.count_seats("tiny", number, stretch_at)


def test_a_seat_is_held_since_the_last_stretch_or_by_an_update(store):
    """Of the first row, a, an update is stored."""
    fill(store)
    assert seats(store, 0.0) == seats(store, 1e9) == 1
    with store.write() as tx:
        for i, name in enumerate("bcd"):
            tx.add_device(device_row(name))
            add_work(tx, name, 10.0 + i)
    assert [seats(store, at) for at in (9.0, 10.0, 10.5, 12.0, 12.5)] == [4, 4, 3, 2, 1]


def test_a_quarantined_update_holds_no_seat(store):
    fill(store)
    with store.write() as tx:
        tx.quarantine(UPDATE, "too large")
    assert seats(store, 0.0) == 0


def test_seats_are_of_one_round_of_one_task_wherever_an_update_counts(store):
    fill(store)
    with store.write() as tx:
        tx.add_task(replace(TASK, name="other"))
        tx.add_adapter(replace(ADAPTER, task="other"))
        tx.add_round(replace(ROUND, task="other"))
        tx.add_round(replace(ROUND, number=2))
        add_work(tx, "a", 10.0, task="other")
        add_work(tx, "a", 10.0, round_number=2)
        tx.add_device(device_row("b"))
        add_work(tx, "b", 10.0)
        tx.add_update(replace(UPDATE, device_id="b", counted_in=2))
    assert [seats(store, at) for at in (0.0, 11.0)] == [2, 2]
    assert [seats(store, at, number=2) for at in (0.0, 11.0)] == [1, 0]


def test_the_last_adapter_is_the_one_of_the_highest_version(store):
    fill(store)
    with store.write() as tx:
        for version in (10, 2):
            tx.add_adapter(replace(ADAPTER, version=version, optimizer_digest="o" * 64))
    with store.read() as tx:
        assert tx.last_adapter("tiny") == replace(ADAPTER, version=10, optimizer_digest="o" * 64)
        assert tx.last_adapter("other") is None


def test_draws_are_taken_one_after_the_other_and_of_one_task(store):
    fill(store)
    with store.write() as tx:
        tx.add_task(replace(TASK, name="other"))
        assert [tx.take_draws("tiny", count) for count in (3, 2**40, 0)] == [0, 3, 3 + 2**40]
        assert tx.take_draws("other", 1) == 0


def test_updates_of_older_rounds_come_after_those_of_newer_ones(store):
    fill(store)
    with store.write() as tx:
        tx.add_round(replace(ROUND, number=2))
        for name in "cb":
            tx.add_device(device_row(name))
            add_work(tx, name, 1.0, round_number=2)
            tx.add_update(replace(UPDATE, device_id=name, round_number=2, counted_in=2))
            add_work(tx, name, 1.0)
            tx.add_update(replace(UPDATE, device_id=name, counted_in=2, staleness=1))
    with store.read() as tx:
        found = [(row.round_number, row.device_id) for row in tx.updates("tiny", 2)]
        assert tx.count_updates("tiny", 2) == 4
        assert tx.participation("tiny") == {"a": (1, 1), "b": (2, 1), "c": (2, 1)}
    assert found == [(2, "b"), (2, "c"), (1, "b"), (1, "c")]
