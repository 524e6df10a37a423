"""Which blobs the rows need, the same in SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.rules.rounds import close_round
from server.storage.sql_store import open_store
from tests.databases import fresh_database
from tests.server.store_rows import ADAPTER, ROUND, UPDATE, fill

MADE_AT = 1000.0
NEW = replace(
    ADAPTER,
    version=1,
    round_number=1,
    digest="aa" * 32,
    master_digest="ab" * 32,
    optimizer_digest="ff" * 32,
    created_at=MADE_AT,
)


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    if request.param == "sqlite":
        opened = open_store(f"sqlite:///{tmp_path / 'server.sqlite'}")
        fill(opened)
        yield opened
        opened.close()
        return
    with fresh_database(request.getfixturevalue("postgres")) as address:
        opened = open_store(address)
        fill(opened)
        yield opened
        opened.close()


def needed(store, prefix="", closed_before=0.0):
    with store.read() as tx:
        return tx.needed_digests(prefix, closed_before)


def close(store):
    with store.write() as tx:
        tx.add_adapter(NEW)
        tx.update_round(close_round(replace(ROUND, state="closing"), 1))


def test_an_update_is_needed_until_its_round_is_closed_for_long_enough(store):
    assert UPDATE.digest in needed(store, closed_before=1e12)
    close(store)
    assert UPDATE.digest in needed(store, closed_before=MADE_AT)
    assert UPDATE.digest not in needed(store, closed_before=MADE_AT + 1)


def test_every_file_of_every_adapter_version_is_needed_for_ever(store):
    close(store)
    of_adapters = {ADAPTER.digest, ADAPTER.master_digest, ADAPTER.optimizer_digest}
    of_adapters |= {NEW.digest, NEW.master_digest, NEW.optimizer_digest}
    assert needed(store, closed_before=1e12) == of_adapters - {None}


def test_the_prefixes_part_what_is_needed(store):
    close(store)
    parts = [needed(store, prefix) for prefix in "0123456789abcdef"]
    everything = needed(store) - {ADAPTER.master_digest}  # which has no hex digits
    assert set().union(*parts) == everything
    assert sum(map(len, parts)) == len(everything)
    assert needed(store, "aa") >= {NEW.digest}
    assert all(digest.startswith("ff") for digest in needed(store, "ff"))
