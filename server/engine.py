"""The database engine: the only file that knows SQLite from other databases."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from edge_sdk.errors import ConfigError, ServerBusy, StorageError

WRITING: Mapping[str, bool] = {"is_writing": True}
"""Execution options of a connection whose transactions write."""

_BUSY_TIMEOUT_MS = 10_000
_SWITCH_PAUSE_S = 0.01
_RETRY_AFTER_S = 2.0
_CONNECTIONS = 48  # above the worker threads of one process, so that none waits for another's


def make_engine(url: str | URL) -> Engine:
    """Return the engine of a database address; no connection is made yet.

    Raises:
        ConfigError: An address of no known database, or of one that lives in memory.
    """
    try:
        if make_url(url).get_backend_name() == "sqlite":
            return _make_sqlite_engine(url)
        return create_engine(url, isolation_level="SERIALIZABLE")
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise ConfigError(f"the database address cannot be used: {error}") from error


def _make_sqlite_engine(url: str | URL) -> Engine:
    if make_url(url).database in (None, "", ":memory:"):
        raise ConfigError(f"the database address {url} names no file: a server outlives its memory")
    engine = create_engine(url, pool_size=4, max_overflow=_CONNECTIONS)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would come too late
    for pragma in (
        f"busy_timeout = {_BUSY_TIMEOUT_MS}",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
    _write_ahead(connection)


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the file to a write-ahead log, waiting for another who does, as SQLite does not."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_SWITCH_PAUSE_S)


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once: a transaction that reads first could not get it later."""
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


@contextmanager
def typed_errors() -> Iterator[None]:
    """Turn the database's exceptions into ours.

    Raises:
        ServerBusy: Another writer holds the database for too long; try again.
        StorageError: The database refused.
    """
    try:
        yield
    except PoolTimeout as error:
        raise ServerBusy("the database has no free connection", _RETRY_AFTER_S) from error
    except OperationalError as error:
        if _is_locked(error):
            raise ServerBusy("the database is locked by a writer", _RETRY_AFTER_S) from error
        raise StorageError(f"the database refused: {error.orig}") from error
    except DBAPIError as error:
        raise StorageError(f"the database refused: {error.orig}") from error


def _is_locked(error: OperationalError) -> bool:
    return isinstance(error.orig, sqlite3.OperationalError) and "locked" in str(error.orig)
