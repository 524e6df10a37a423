"""SQLite: one file, writers that queue for its lock, and lock files beside it."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event

from edge_sdk.errors import ConfigError, StorageError

_BUSY_TIMEOUT_MS = 10_000
_SWITCH_PAUSE_S = 0.01
_CONNECTIONS = 48  # above the worker threads of one process, so that none waits for another's


def make_engine(address: URL) -> Engine:
    """Return the engine of a database file; it is not opened yet.

    Raises:
        ConfigError: An address that names no file.
    """
    if address.database in (None, "", ":memory:"):
        raise ConfigError(
            f"the database address {address} names no file: a server outlives its memory"
        )
    engine = create_engine(
        address,
        pool_size=4,
        max_overflow=_CONNECTIONS,
        hide_parameters=True,  # they may be secrets, and errors are logged
    )
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def exclusive(engine: Engine, name: str) -> Iterator[bool]:
    """Hold a name against every process on the same database file.

    The lock is SQLite's own, on an empty database beside the real one, so it works on every
    system SQLite works on and ends with the process that holds it.

    Raises:
        StorageError: The lock file cannot be opened.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    path = Path(f"{engine.url.database}.{digest}.lock")
    try:
        with closing(sqlite3.connect(path, timeout=0.0, isolation_level=None)) as lock:
            yield _is_taken(lock)
    except sqlite3.Error as error:
        raise StorageError(f"the lock file {path.name} cannot be used: {error}") from error


def _is_taken(lock: sqlite3.Connection) -> bool:
    """Try to lock a file for as long as its connection lives; say whether that worked."""
    try:
        lock.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return False
        raise
    return True


def _set_up(connection: sqlite3.Connection, _record: object) -> None:
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


def _begin(connection: Connection) -> None:
    """Take the write lock at once: a transaction that reads first could not get it later."""
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
