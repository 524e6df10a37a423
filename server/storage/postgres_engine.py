"""PostgreSQL through psycopg: sessions that never wait for ever, and writers that queue."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import psycopg
from psycopg import IsolationLevel
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, select
from sqlalchemy.exc import DBAPIError

from edge_sdk.errors import ConfigError

_DRIVER = "postgresql+psycopg"
_POOL_SIZE, _MORE_CONNECTIONS = 4, 12  # six replicas fit into PostgreSQL's usual 100
_POOL_WAIT_S = 10.0

_CONNECT: Mapping[str, str] = {
    "application_name": "edge-server",
    "client_encoding": "utf8",
    "connect_timeout": "5",
}
"""What a connection is made with, unless the address says otherwise."""

_SESSION: Mapping[str, str] = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    # A replica whose machine vanished loses its locks within half a minute.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
}


def make_engine(address: URL) -> Engine:
    """Return the engine of a database; no connection is made yet."""
    engine = create_engine(
        address.set(drivername=_DRIVER),
        connect_args={name: text for name, text in _CONNECT.items() if name not in address.query},
        pool_size=_POOL_SIZE,
        max_overflow=_MORE_CONNECTIONS,
        pool_timeout=_POOL_WAIT_S,
        pool_pre_ping=True,
        use_native_hstore=False,  # would cost a question at every start
        hide_parameters=True,  # they may be secrets, and errors are logged
    )
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def exclusive(engine: Engine, name: str) -> Iterator[bool]:
    """Hold a name against every session of the same database, on a connection of its own."""
    key = _lock_key(f"edge-server exclusive {name}")
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        is_ours = connection.execute(select(func.pg_try_advisory_lock(key))).scalar_one()
        try:
            yield bool(is_ours)
        finally:
            if is_ours:
                _unlock(connection, key)


def _unlock(connection: Connection, key: int) -> None:
    """Give a name back; a session that cannot say so is ended, and its locks with it."""
    try:
        connection.execute(select(func.pg_advisory_unlock(key)))
    except DBAPIError:
        connection.invalidate()


def _lock_key(name: str) -> int:
    """Return a number for a name, from the whole range of PostgreSQL's advisory locks."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


_WRITERS_KEY = _lock_key("edge-server writers")


def _set_up(connection: psycopg.Connection[Any], _record: object) -> None:
    """Bound every wait of a session, and refuse a database that could not keep what it is told.

    Raises:
        ConfigError: The database cannot hold every text.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        connection.close()
        raise ConfigError(
            f"the database has the encoding {encoding}, which cannot hold every text: make one "
            "with encoding UTF8"
        )
    for name, value in _SESSION.items():
        connection.execute("SELECT set_config(%s, %s, false)", (name, value))
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()


def _begin(connection: Connection) -> None:
    """Let writers in one at a time, each seeing all before it; give readers one state.

    The lock is gone only when the commit is durable and seen by all.
    """
    options = connection.get_execution_options()
    is_writing = options.get("is_writing", False)
    session = cast(psycopg.Connection[Any], connection.connection.dbapi_connection)
    if session.autocommit:
        return
    session.read_only = not is_writing
    session.isolation_level = (
        IsolationLevel.READ_COMMITTED if is_writing else IsolationLevel.REPEATABLE_READ
    )
    if options.get("is_migrating", False):
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
    if is_writing:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS_KEY})")
