"""What the server relies on, the same in SQLite and PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from sqlalchemy import text

from edge_sdk.errors import MalformedMessage, StorageError
from server.storage.sql_store import open_store
from tests.server.store_rows import (
    ADAPTER,
    ASSIGNMENT,
    DEVICE,
    ROUND,
    TASK,
    UPDATE,
    device_row,
    fill,
)
from tests.server.tasks import in_parallel, wait_until


def test_rows_come_back_as_they_were_also_after_reopening(store, address):
    fill(store)
    store.close()
    again = open_store(address)
    with again.read() as tx:
        assert tx.task("tiny") == TASK
        assert tx.task_names() == ["tiny"]
        assert tx.device("a") == DEVICE
        assert tx.adapter("tiny", 0) == ADAPTER
        assert tx.adapters("tiny") == [ADAPTER]
        assert tx.round("tiny", 1) == tx.last_round("tiny") == ROUND
        assert tx.rounds("tiny") == tx.unfinished_rounds() == [ROUND]
        assert tx.assignment("tiny", 1, "a") == ASSIGNMENT
        assert tx.assignments("tiny", 1) == [ASSIGNMENT]
        assert tx.accepted("tiny", 1, "a") == UPDATE
        assert tx.updates("tiny", 1) == [UPDATE]
        assert tx.count_updates("tiny", 1) == 1
    again.close()


def test_what_is_not_there_is_none_or_empty(store):
    with store.read() as tx:
        assert tx.task("tiny") is tx.device("a") is None
        assert tx.adapter("tiny", 0) is tx.round("tiny", 1) is tx.last_round("tiny") is None
        assert tx.assignment("tiny", 1, "a") is tx.accepted("tiny", 1, "a") is None
        assert tx.task_names() == tx.unfinished_rounds() == []
        assert tx.adapters("tiny") == tx.rounds("tiny") == tx.updates("tiny", 1) == []


def test_a_failing_transaction_changes_nothing(store):
    def fail_half_way():
        with store.write() as tx:
            tx.add_task(TASK)
            tx.add_device(DEVICE)
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    with store.read() as tx:
        assert tx.task_names() == []
        assert tx.device("a") is None


def test_a_second_update_of_a_device_in_a_round_cannot_be_stored(store):
    fill(store)
    with pytest.raises(StorageError, match=r"(?i)unique"), store.write() as tx:
        tx.add_update(replace(UPDATE, digest="f" * 64))


def test_an_update_without_its_assignment_cannot_be_stored(store):
    fill(store)
    with pytest.raises(StorageError, match=r"(?i)foreign key"), store.write() as tx:
        tx.add_update(replace(UPDATE, device_id="b"))


def test_a_reading_transaction_cannot_read_what_is_written_after_it_began(store):
    fill(store)
    with store.read() as reading:
        assert reading.round("tiny", 1).state == "open"
        with store.write() as writing:
            writing.update_round(replace(ROUND, state="closing"))
        assert reading.round("tiny", 1).state == "open"
    with store.read() as reading:
        assert reading.round("tiny", 1).state == "closing"


def test_rounds_change_and_downloads_add_up(store):
    fill(store)
    closed = replace(ROUND, state="closed", adapter_version=1)
    with store.write() as tx:
        tx.update_round(closed)
        tx.add_download(ASSIGNMENT, 10)
        tx.add_download(ASSIGNMENT, 5)
    with store.read() as tx:
        assert tx.round("tiny", 1) == closed
        assert tx.unfinished_rounds() == []
        assert tx.assignment("tiny", 1, "a").download_bytes == 15


def test_a_shrunk_assignment_keeps_all_but_its_size_and_no_other_row_changes(store, address):
    fill(store)
    others = [
        replace(ASSIGNMENT, device_id="b"),
        replace(ASSIGNMENT, round_number=2),
        replace(ASSIGNMENT, task="other"),
    ]
    with store.write() as tx:
        tx.add_device(device_row("b"))
        tx.add_task(replace(TASK, name="other"))
        tx.add_adapter(replace(ADAPTER, task="other"))
        tx.add_round(replace(ROUND, number=2))
        tx.add_round(replace(ROUND, task="other"))
        for row in others:
            tx.add_assignment(row)
        tx.add_download(ASSIGNMENT, 10)
        tx.shrink_assignment(ASSIGNMENT, 1)
        tx.add_download(ASSIGNMENT, 5)
    store.close()
    again = open_store(address)
    with again.read() as tx:
        assert tx.assignment("tiny", 1, "a") == replace(ASSIGNMENT, k=1, download_bytes=15)
        for row in others:
            assert tx.assignment(row.task, row.round_number, row.device_id) == row
    again.close()


def test_a_failing_transaction_shrinks_nothing(store):
    fill(store)

    def fail_after_shrinking():
        with store.write() as tx:
            tx.shrink_assignment(ASSIGNMENT, 1)
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_shrinking()
    with store.read() as tx:
        assert tx.assignment("tiny", 1, "a") == ASSIGNMENT


def test_rows_of_a_round_are_ordered_by_device_whatever_came_first(store):
    fill(store)
    with store.write() as tx:
        for name in ("c", "b"):
            tx.add_device(device_row(name))
            tx.add_assignment(replace(ASSIGNMENT, device_id=name))
            tx.add_update(replace(UPDATE, device_id=name))
    with store.read() as tx:
        assert [row.device_id for row in tx.updates("tiny", 1)] == ["a", "b", "c"]
        assert [row.device_id for row in tx.assignments("tiny", 1)] == ["a", "b", "c"]


def test_writers_wait_for_each_other_so_that_none_works_on_a_stale_read(store, address):
    """Read, then write what was read plus one: lost unless writers are alone from the start."""
    fill(store)
    other = open_store(address)

    def count_up(place):
        for _ in range(10):
            with place.write() as tx:
                row = tx.round("tiny", 1)
                tx.update_round(replace(row, deadline_at=row.deadline_at + 1))

    results = in_parallel([lambda x=place: count_up(x) for place in (store, other) * 3])
    other.close()
    assert results == [None] * 6
    with store.read() as tx:
        assert tx.round("tiny", 1).deadline_at == ROUND.deadline_at + 60


@pytest.mark.parametrize("value", [0.1, 1e-308, 1.7976931348623157e308, 2**53 + 0.0, -1e-9])
def test_floats_come_back_to_the_last_bit(store, value):
    fill(store)
    with store.write() as tx:
        tx.update_round(replace(ROUND, deadline_at=value))
    with store.read() as tx:
        assert tx.round("tiny", 1).deadline_at == value


def test_every_text_but_nul_and_half_a_surrogate_pair_is_kept(store):
    name = "".join(map(chr, [1, 10, 0x7F, 0xE9, 0x202E, 0xFFFF, 0x1F600, 0x10FFFF])) + "'\"\\%s:x"
    with store.write() as tx:
        tx.add_device(device_row("a", name))
    with store.read() as tx:
        assert tx.device("a").name == name
    for i, bad in enumerate(("a\0b", "\ud800")):
        with pytest.raises(MalformedMessage, match="NUL"), store.write() as tx:
            tx.add_device(device_row(f"b{i}", bad))
        with pytest.raises(MalformedMessage, match="NUL"), store.read() as tx:
            tx.task(bad)
    with store.read() as tx:
        assert tx.device("b0") is tx.device("b1") is None


def test_a_damaged_task_is_the_fault_of_the_disk_and_not_of_whoever_asks(store):
    fill(store)
    with store.write() as tx:
        tx._connection.execute(text("UPDATE tasks SET spec = 'damaged'"))
    with pytest.raises(StorageError, match="tiny"), store.read() as tx:
        tx.task("tiny")


def test_a_name_is_held_by_one_at_a_time_and_another_name_by_another(store, address):
    other = open_store(address)
    with store.exclusive("closing a") as is_held:
        assert is_held
        with other.exclusive("closing a") as is_held_too, other.exclusive("closing b") as is_free:
            assert not is_held_too
            assert is_free
        with store.exclusive("closing a") as is_held_again:
            assert not is_held_again, "not even the same store holds it twice"
    with other.exclusive("closing a") as is_held:
        assert is_held
    other.close()


def test_a_name_is_free_again_after_an_error_inside(store):
    with pytest.raises(KeyError), store.exclusive("closing a"):
        raise KeyError
    with store.exclusive("closing a") as is_held:
        assert is_held


def test_a_name_is_free_again_when_its_holder_is_killed(store, address):
    code = (
        "from server.storage.sql_store import open_store\n"
        f"with open_store({address!r}).exclusive('closing a') as is_held:\n"
        "    print(is_held, flush=True)\n"
        "    input()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "True\n"
    with store.exclusive("closing a") as is_held:
        assert not is_held
    holder.kill()
    holder.communicate()
    _wait_until_held(store, "closing a")


def test_of_many_that_ask_at_once_one_holds_the_name(store, address):
    others = [open_store(address) for _ in range(6)]
    barrier = threading.Barrier(len(others))

    def ask(place):
        with place.exclusive("closing a") as is_held:
            barrier.wait(20)
            return is_held

    answers = in_parallel([lambda x=place: ask(x) for place in others])
    for place in others:
        place.close()
    assert sorted(answers) == [False] * 5 + [True]


def _wait_until_held(store, name):
    def is_held():
        with store.exclusive(name) as found:
            return found

    wait_until(is_held)
