"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.storage.sql_store import SqlStore, open_store
from tests.databases import fresh_database
from tests.server.tasks import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path / "state")
    yield found
    found.store.close()


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'server.sqlite'}"
    else:
        with fresh_database(request.getfixturevalue("postgres")) as found:
            yield found


@pytest.fixture
def store(address: str) -> Iterator[SqlStore]:
    """A store in it, with all tables and no rows."""
    opened = open_store(address)
    yield opened
    opened.close()
