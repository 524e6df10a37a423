"""Addresses of databases, PostgreSQL's sessions, and what becomes of its errors."""

from __future__ import annotations

import threading

import psycopg
import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from edge_sdk.errors import ConfigError, ServerBusy, StorageError
from server.storage import postgres_engine
from server.storage.engine import make_engine, typed_errors
from server.storage.sql_store import open_store
from tests.databases import fresh_database
from tests.services import free_port

LATIN1 = "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"


@pytest.fixture
def address(postgres):
    with fresh_database(postgres) as found:
        yield found


@pytest.fixture
def store(address):
    opened = open_store(address)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "address", ["nonsense", "nodatabase://here/x", "sqlite://", "sqlite:///:memory:"]
)
def test_an_address_of_no_known_database_is_a_config_error(address):
    with pytest.raises(ConfigError, match="database address"):
        open_store(address)


def test_an_address_with_another_driver_is_refused_without_its_password():
    with pytest.raises(ConfigError, match="must begin") as caught:
        make_engine("postgresql+psycopg2://edge:secret@here/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_way_to_write_a_postgresql_address_means_psycopg(scheme):
    engine = make_engine(f"{scheme}://edge@here/x")
    assert engine.dialect.driver == "psycopg"
    engine.dispose()


def test_what_the_address_says_goes_before_what_we_would_say(address):
    url = make_url(address)
    store = open_store(url.update_query_dict({"application_name": "mine"}))
    assert _asked(store, "SHOW application_name") == "mine"
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_an_error_of_the_database_does_not_tell_the_values_of_a_statement(kind, request, tmp_path):
    is_file = kind == "sqlite"
    url = f"sqlite:///{tmp_path / 'a.sqlite'}" if is_file else request.getfixturevalue("address")
    engine = make_engine(url)
    with pytest.raises(DBAPIError) as caught, engine.connect() as connection:
        connection.execute(text("SELECT :it FROM nowhere"), {"it": "a secret"})
    engine.dispose()
    assert "nowhere" in str(caught.value)
    assert "a secret" not in str(caught.value)


def test_a_database_that_cannot_hold_every_text_is_refused(postgres):
    with (
        fresh_database(postgres, LATIN1) as found,
        pytest.raises(ConfigError, match="LATIN1"),
    ):
        open_store(found)


def test_commits_are_durable_also_where_the_database_says_otherwise(address):
    _say(address, f"ALTER DATABASE {make_url(address).database} SET synchronous_commit = off")
    store = open_store(address)
    assert _asked(store, "SHOW synchronous_commit") == "on"
    store.close()


def test_no_session_waits_for_ever(store):
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        assert _asked(store, f"SHOW {name}") not in ("0", None)


def test_a_reader_cannot_write_and_sees_one_state_however_often_it_looks(store):
    assert _asked(store, "SHOW transaction_isolation") == "repeatable read"
    with pytest.raises(ServerBusy), store.read() as tx:
        tx._connection.execute(text("DELETE FROM tasks"))
    with store.write() as tx:
        asked = tx._connection.execute(text("SHOW transaction_isolation")).scalar()
    assert asked == "read committed"


def test_a_writer_that_others_keep_waiting_is_server_busy_and_the_next_is_served(
    store, address, monkeypatch
):
    monkeypatch.setitem(postgres_engine._SESSION, "lock_timeout", "50ms")
    hasty = open_store(address)
    with store.write(), pytest.raises(ServerBusy) as caught, hasty.write():
        pass
    assert caught.value.retry_after_s > 0
    with hasty.write() as tx:
        assert tx.task_names() == []
    hasty.close()


def test_a_session_that_the_database_ends_is_server_busy_and_the_next_is_served(store, address):
    def lose_the_session():
        with store.write() as tx:
            pid = tx._connection.execute(text("SELECT pg_backend_pid()")).scalar()
            _say(address, f"SELECT pg_terminate_backend({pid}, 5000)")
            tx.task_names()

    with pytest.raises(ServerBusy, match="reached"):
        lose_the_session()
    with store.write() as tx:
        assert tx.task_names() == []


def test_a_database_that_ended_idle_sessions_is_not_noticed(store, address):
    """As after a restart: what lies in the pool is dead, and is tried before it is used."""
    with store.read() as tx:
        pid = tx._connection.execute(text("SELECT pg_backend_pid()")).scalar()
    _say(address, f"SELECT pg_terminate_backend({pid}, 5000)")
    with store.read() as tx:
        assert tx.task_names() == []


def test_a_name_whose_session_the_database_ended_is_free(store, address):
    with store.exclusive("closing a") as is_held:
        assert is_held
        _say(
            address,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks "
            "WHERE locktype = 'advisory' AND pid <> pg_backend_pid()",
        )
    with store.exclusive("closing a") as is_held:
        assert is_held


def test_no_server_at_the_address_is_server_busy_and_says_nothing_of_the_address(caplog):
    port = free_port()
    with pytest.raises(ServerBusy, match="reached") as caught:
        open_store(f"postgresql://edge:secret@127.0.0.1:{port}/x")
    assert str(port) not in str(caught.value)
    assert str(port) in caplog.text, "the operator can read the reason"
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.TooManyConnections("sorry, too many clients already"),
        psycopg.errors.CannotConnectNow("the database system is starting up"),
        psycopg.errors.ReadOnlySqlTransaction("cannot execute in a read-only transaction"),
        psycopg.errors.DeadlockDetected("deadlock detected"),
        psycopg.errors.QueryCanceled("canceling statement due to statement timeout"),
        psycopg.errors.ConnectionTimeout("connection timeout expired"),
        psycopg.OperationalError("the connection is lost"),
    ],
)
def test_what_passes_by_itself_is_server_busy(error):
    with pytest.raises(ServerBusy), typed_errors():
        _raise_as_sqlalchemy(error)


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.DiskFull("could not extend file: No space left on device"),
        psycopg.errors.UniqueViolation("duplicate key value"),
        psycopg.errors.UndefinedTable("there is no such table"),
        psycopg.DataError("cannot dump"),
    ],
)
def test_what_does_not_pass_by_itself_is_a_storage_error(error):
    with pytest.raises(StorageError), typed_errors():
        _raise_as_sqlalchemy(error)


def test_more_threads_than_connections_are_served_one_after_the_other(store):
    started = threading.Barrier(40)
    failures = []

    def write():
        started.wait(20)
        try:
            with store.write() as tx:
                tx.task_names()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def _say(address, sentence):
    """Run one statement as somebody else."""
    engine = create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(sentence)
    engine.dispose()


def _asked(store, question):
    with store.read() as tx:
        return tx._connection.execute(text(question)).scalar()


def _raise_as_sqlalchemy(error):
    raise DBAPIError.instance("statement", None, error, psycopg.Error)
