"""A database of its own for each test, on the PostgreSQL server all tests share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import NullPool, create_engine, make_url


@contextmanager
def fresh_database(server: str, more: str = "") -> Iterator[str]:
    """Make an empty database and give its address; it is gone at the end, whoever uses it.

    Args:
        server: Address of any database of the server.
        more: Further words of ``CREATE DATABASE``.
    """
    name = f"edge_{secrets.token_hex(6)}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} {more}")
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
