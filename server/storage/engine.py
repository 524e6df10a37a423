"""The database engine of an address, and the database's exceptions as ours."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import URL, Connection, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from edge_sdk.errors import ConfigError, MalformedMessage, ServerBusy, StorageError
from server.storage import sqlite_engine

log = logging.getLogger(__name__)

WRITING: Mapping[str, bool] = {"is_writing": True}
"""Execution options of a connection whose transactions write."""

MIGRATING: Mapping[str, bool] = {"is_writing": True, "is_migrating": True}
"""The same for one that changes tables, however long that takes."""

_SQLITE = "sqlite"
_POSTGRES = ("postgresql+psycopg", "postgresql", "postgres")
_RETRY_AFTER_S = 2.0
_BUSY_CLASSES = ("08", "40")  # SQLSTATE: connection lost; rolled back for another's sake
_BUSY_STATES = (
    "25006",  # read only: this server is not the primary, or not yet
    "25P03",  # stood idle inside a transaction
    "53300",  # too many connections
    "55P03",  # a lock was not to be had in time
    "57014",  # a statement took too long
    "57P01",  # shutting down
    "57P02",  # another session crashed
    "57P03",  # starting up or recovering
)


def make_engine(url: str | URL) -> Engine:
    """Return the engine of a database address; no connection is made yet.

    Raises:
        ConfigError: An address of no known database, of one that lives in memory, or one whose
            driver is not installed.
    """
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise ConfigError(f"the database address cannot be used: {error}") from error
    if address.drivername == _SQLITE:
        engine = sqlite_engine.make_engine(address)
    elif address.drivername in _POSTGRES:
        engine = _make_postgres_engine(address)
    else:
        raise ConfigError(
            f"the database address begins with {address.drivername}://; it must begin with "
            "sqlite:/// or postgresql://"
        )
    event.listen(engine, "before_cursor_execute", _refuse_unstorable_text)
    return engine


def _make_postgres_engine(address: URL) -> Engine:
    try:
        from server.storage import postgres_engine
    except ImportError as error:
        raise ConfigError(
            "the database address needs the driver of PostgreSQL: pip install edge-sdk[replicas]"
        ) from error
    return postgres_engine.make_engine(address)


def exclusive(engine: Engine, name: str) -> AbstractContextManager[bool]:
    """Hold a name, if nobody else does, until the block ends or this process dies.

    Returns:
        A block that is told whether the name is held.
    """
    if engine.dialect.name == _SQLITE:
        return sqlite_engine.exclusive(engine, name)
    from server.storage import postgres_engine

    return postgres_engine.exclusive(engine, name)


@contextmanager
def typed_errors() -> Iterator[None]:
    """Turn the database's exceptions into ours.

    Raises:
        ServerBusy: Another writer holds the database for too long, or it cannot be reached now;
            try again.
        StorageError: The database refused.
    """
    try:
        yield
    except PoolTimeout as error:
        raise ServerBusy("the database has no free connection", _RETRY_AFTER_S) from error
    except DBAPIError as error:
        if _is_lost(error):
            log.warning("the database cannot be reached: %s", error.orig)
            raise ServerBusy("the database cannot be reached now", _RETRY_AFTER_S) from error
        if _is_busy(error):
            raise ServerBusy("the database is locked or restarting", _RETRY_AFTER_S) from error
        raise StorageError(f"the database refused: {error.orig}") from error


def _is_lost(error: DBAPIError) -> bool:
    """Say whether the connection broke or was never made; only a server gives a SQLSTATE."""
    if isinstance(error.orig, sqlite3.Error):
        return False
    is_unanswered = isinstance(error, OperationalError) and not _state(error)
    return error.connection_invalidated or is_unanswered


def _is_busy(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.OperationalError):
        return "locked" in str(error.orig)
    state = _state(error)
    return state[:2] in _BUSY_CLASSES or state in _BUSY_STATES


def _state(error: DBAPIError) -> str:
    """Return the SQLSTATE of an error, empty if it has none."""
    return getattr(error.orig, "sqlstate", None) or ""


def _refuse_unstorable_text(
    _connection: Connection, _cursor: object, _statement: str, parameters: object, *_rest: object
) -> None:
    """Refuse text that not every database can hold, before any of them sees it."""
    for text in _texts(parameters):
        if "\0" in text or not _is_unicode(text):
            raise MalformedMessage(
                "a text holds a NUL or half a surrogate pair: no database keeps them, leave it out"
            )


def _texts(parameters: object) -> Iterator[str]:
    """Find the texts among the parameters of a statement, whatever form the driver gave them."""
    if isinstance(parameters, str):
        yield parameters
    elif isinstance(parameters, Mapping):
        yield from _texts(list(parameters.values()))
    elif isinstance(parameters, Iterable) and not isinstance(parameters, bytes):
        for value in parameters:
            yield from _texts(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
