"""The Store in SQL; nothing here is special to one database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, Engine

from edge_sdk.errors import ServerBusy
from server.storage.engine import MIGRATING, WRITING, exclusive, make_engine, typed_errors
from server.storage.migrate import check_at_head, upgrade_to_head
from server.storage.sql_access import SqlAccess
from server.storage.sql_evaluations import SqlEvaluations
from server.storage.sql_fleet import SqlFleet
from server.storage.sql_references import SqlReferences
from server.storage.sql_registry import SqlRegistry
from server.storage.sql_rounds import SqlRounds
from server.storage.store import Transaction

_TURN_S = 10.0
_RETRY_AFTER_S = 2.0


class SqlTransaction(SqlRounds, SqlReferences, SqlRegistry, SqlAccess, SqlFleet, SqlEvaluations):
    """One transaction on one connection; see :class:`server.storage.store.Transaction`."""


class SqlStore:
    """Rows in a database; see :class:`server.storage.store.Store`.

    Writers of one process queue here: SQLite lets a writer sleep and look again, so that under load
    one may look in vain until its time is up, and PostgreSQL's would each hold a connection.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a transaction that sees one consistent state."""
        with typed_errors(), self._engine.connect() as connection, connection.begin():
            yield SqlTransaction(connection)

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open a transaction that is alone among writers and durable when it ends."""
        with typed_errors(), self._turn(), self._engine.connect() as connection:
            connection = connection.execution_options(**WRITING)
            with connection.begin():
                yield SqlTransaction(connection)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._writing.acquire(timeout=_TURN_S):
            raise ServerBusy("the writers before this one take too long", _RETRY_AFTER_S)
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def exclusive(self, name: str) -> Iterator[bool]:
        """Hold a name, if nobody else does, until the block ends or this process dies."""
        with typed_errors(), exclusive(self._engine, name) as is_held:
            yield is_held

    def check(self) -> None:
        """Return if the database answers and has the tables of this release."""
        with typed_errors(), self._engine.connect() as connection:
            check_at_head(connection)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()


def open_store(url: str | URL) -> SqlStore:
    """Open a database and bring its tables to the present form.

    Args:
        url: SQLAlchemy address; the folder of a SQLite file must exist.

    Raises:
        ConfigError: An address of no known database, or tables of a newer release.
        StorageError: The database cannot be opened.
        ServerBusy: It cannot be reached now, or another process holds it for too long.
    """
    engine = make_engine(url)
    try:
        with typed_errors(), engine.connect() as connection:
            connection = connection.execution_options(**MIGRATING)
            with connection.begin():
                upgrade_to_head(connection)
    except BaseException:
        engine.dispose()
        raise
    return SqlStore(engine)
