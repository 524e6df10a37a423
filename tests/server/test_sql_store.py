import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet  # a class of its own in Python 3.10
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url, text

from edge_sdk.errors import ConfigError, ServerBusy, StorageError
from server import engine, tables
from server.rounds import open_round
from server.sql_store import open_store
from server.store import AdapterRow, AssignmentRow, DeviceRow, TaskRow, UpdateRow
from tests.server.tasks import tiny_spec

SPEC = tiny_spec()
TASK = TaskRow(name="tiny", spec=SPEC, seed=2**53 - 1, created_at=1.5)
DEVICE = DeviceRow(id="a", name="Ann's phone ☎", token_hash="h" * 64, enrolled_at=2.5)
ADAPTER = AdapterRow(
    task="tiny",
    version=0,
    round_number=0,
    digest="d" * 64,
    size_bytes=2**40,
    master_digest="m" * 64,
    created_at=3.5,
)
ROUND = open_round("tiny", 1, SPEC.policy, 4.5)
ASSIGNMENT = AssignmentRow(
    task="tiny",
    round_number=1,
    device_id="a",
    k=2,
    seed=2**53 - 1,
    adapter_version=0,
    assigned_at=5.5,
)
UPDATE = UpdateRow(
    task="tiny",
    round_number=1,
    device_id="a",
    digest="e" * 64,
    size_bytes=2**33,
    examples=2**53,
    loss=0.1,
    seconds=0.2,
    peak_rss_bytes=2**53,
    accepted_at=6.5,
)


@pytest.fixture
def address(tmp_path):
    return f"sqlite:///{tmp_path / 'server.sqlite'}"


@pytest.fixture
def store(address):
    opened = open_store(address)
    yield opened
    opened.close()


def fill(store):
    with store.write() as tx:
        tx.add_task(TASK)
        tx.add_device(DEVICE)
        tx.add_adapter(ADAPTER)
        tx.add_round(ROUND)
        tx.add_assignment(ASSIGNMENT)
        tx.add_update(UPDATE)


def test_rows_come_back_as_they_were_also_after_reopening(store, address):
    fill(store)
    store.close()
    again = open_store(address)
    with again.read() as tx:
        assert tx.task("tiny") == TASK
        assert tx.task_names() == ["tiny"]
        assert tx.device("a") == tx.device_by_token("h" * 64) == DEVICE
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
        assert tx.task("tiny") is None
        assert tx.device("a") is tx.device_by_token("h") is None
        assert tx.adapter("tiny", 0) is tx.round("tiny", 1) is tx.last_round("tiny") is None
        assert tx.assignment("tiny", 1, "a") is tx.accepted("tiny", 1, "a") is None
        assert tx.task_names() == tx.enrolment_token_hashes() == tx.unfinished_rounds() == []
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
    with pytest.raises(StorageError, match="UNIQUE"), store.write() as tx:
        tx.add_update(replace(UPDATE, digest="f" * 64))


def test_an_update_without_its_assignment_cannot_be_stored(store):
    fill(store)
    with pytest.raises(StorageError, match="FOREIGN KEY"), store.write() as tx:
        tx.add_update(replace(UPDATE, device_id="b"))


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
    other_round, other_task = replace(ROUND, number=2), replace(TASK, name="other")
    others = [
        replace(ASSIGNMENT, device_id="b"),
        replace(ASSIGNMENT, round_number=2),
        replace(ASSIGNMENT, task="other"),
    ]
    with store.write() as tx:
        tx.add_device(replace(DEVICE, id="b", token_hash="b"))
        tx.add_task(other_task)
        tx.add_adapter(replace(ADAPTER, task="other"))
        tx.add_round(other_round)
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
            tx.add_device(replace(DEVICE, id=name, token_hash=name))
            tx.add_assignment(replace(ASSIGNMENT, device_id=name))
            tx.add_update(replace(UPDATE, device_id=name))
    with store.read() as tx:
        assert [row.device_id for row in tx.updates("tiny", 1)] == ["a", "b", "c"]
        assert [row.device_id for row in tx.assignments("tiny", 1)] == ["a", "b", "c"]


def test_writers_wait_for_each_other_so_that_none_works_on_a_stale_read(store):
    """Read, then write what was read plus one: lost unless writers are alone from the start."""
    fill(store)

    def count_up():
        for _ in range(10):
            with store.write() as tx:
                row = tx.round("tiny", 1)
                tx.update_round(replace(row, deadline_at=row.deadline_at + 1))

    threads = [threading.Thread(target=count_up) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as tx:
        assert tx.round("tiny", 1).deadline_at == ROUND.deadline_at + 60


def test_a_reader_sees_one_state_while_a_writer_commits(store):
    fill(store)
    with store.read() as reading:
        assert reading.round("tiny", 1).state == "open"
        with store.write() as writing:
            writing.update_round(replace(ROUND, state="closing"))
        assert reading.round("tiny", 1).state == "open"
    with store.read() as reading:
        assert reading.round("tiny", 1).state == "closing"


def test_a_database_that_stays_locked_is_server_busy(address, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_BUSY_TIMEOUT_MS", 50)
    store = open_store(address)
    other = sqlite3.connect(tmp_path / "server.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ServerBusy) as caught, store.write():
        pass
    assert caught.value.retry_after_s > 0
    other.execute("ROLLBACK")
    other.close()
    with store.write() as tx:
        tx.add_enrolment_token("h", 1.0)
    store.close()


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


def test_migrations_build_exactly_the_tables_the_code_expects(store, address):
    plain = create_engine(address)
    with plain.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    plain.dispose()


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


def test_opening_from_several_threads_at_once_migrates_once(address):
    opened, errors = [], []

    def open_one():
        try:
            opened.append(open_store(address))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for store in opened:
        store.close()


def test_a_database_of_a_newer_release_is_refused(store, address):
    with store.write() as tx:
        tx._connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    with pytest.raises(ConfigError, match="newer"):
        open_store(address)


def test_a_damaged_task_is_the_fault_of_the_disk_and_not_of_whoever_asks(store):
    fill(store)
    with store.write() as tx:
        tx._connection.execute(text("UPDATE tasks SET spec = 'damaged'"))
    with pytest.raises(StorageError, match="tiny"), store.read() as tx:
        tx.task("tiny")


def test_a_file_that_is_no_database_is_a_storage_error(tmp_path):
    (tmp_path / "server.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="not a database"):
        open_store(f"sqlite:///{tmp_path / 'server.sqlite'}")


@pytest.mark.parametrize(
    "address", ["nonsense", "nodatabase://here/x", "sqlite://", "sqlite:///:memory:"]
)
def test_an_address_of_no_known_database_is_a_config_error(address):
    with pytest.raises(ConfigError, match="database address"):
        open_store(address)
