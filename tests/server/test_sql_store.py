"""What is special to SQLite; test_store_contract.py holds what both databases promise."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet  # a class of its own in Python 3.10
from dataclasses import replace

import pytest
from sqlalchemy import make_url, text

from edge_sdk.errors import ServerBusy, StorageError
from server.storage import sqlite_engine
from server.storage.sql_store import open_store
from tests.server.store_rows import SPEC, TASK


@pytest.fixture
def address(tmp_path):
    return f"sqlite:///{tmp_path / 'server.sqlite'}"


@pytest.fixture
def store(address):
    opened = open_store(address)
    yield opened
    opened.close()


def test_a_database_that_stays_locked_is_server_busy(address, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_engine, "_BUSY_TIMEOUT_MS", 50)
    store = open_store(address)
    other = sqlite3.connect(tmp_path / "server.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ServerBusy) as caught, store.write():
        pass
    assert caught.value.retry_after_s > 0
    other.execute("ROLLBACK")
    other.close()
    with store.write() as tx:
        tx.add_task(TASK)
    store.close()


def test_writers_of_one_process_wait_for_each_other_and_not_for_the_file(address, monkeypatch):
    monkeypatch.setattr(sqlite_engine, "_BUSY_TIMEOUT_MS", 1)
    store = open_store(address)

    def write(number):
        with store.write() as tx:
            tx.add_task(replace(TASK, name=f"t{number}"))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(100)))
    with store.read() as tx:
        assert len(tx.task_names()) == 100
    store.close()


def test_opening_waits_for_another_who_switches_the_new_file_to_a_log(address):
    rival = sqlite3.connect(make_url(address).database, isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")  # what the switch holds, and SQLite refuses without a wait
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(open_store, address)
        with pytest.raises(NotYet):
            opening.result(timeout=0.3)
        rival.execute("ROLLBACK")
        opening.result(timeout=30).close()
    rival.close()


def test_a_full_database_is_a_storage_error_and_changes_nothing(store):
    with store.write() as tx:
        pages = tx._connection.execute(text("PRAGMA page_count")).scalar()
        tx._connection.execute(text(f"PRAGMA max_page_count = {pages}"))
    huge = replace(TASK, spec=replace(SPEC, base=replace(SPEC.base, model="m" * 200_000)))
    with pytest.raises(StorageError, match="full"), store.write() as tx:
        tx.add_task(huge)
    with store.read() as tx:
        assert tx.task_names() == []


def test_commits_are_synced_and_foreign_keys_hold(store):
    with store.read() as tx:
        pragma = {
            name: tx._connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_file_that_is_no_database_is_a_storage_error(tmp_path):
    (tmp_path / "server.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="not a database"):
        open_store(f"sqlite:///{tmp_path / 'server.sqlite'}")


def test_a_lock_that_cannot_be_had_is_a_storage_error(store, tmp_path):
    with store.exclusive("closing a"):
        (lock,) = tmp_path.glob("*.lock")
    lock.unlink()
    lock.mkdir()
    with pytest.raises(StorageError, match="lock file"), store.exclusive("closing a"):
        pass
