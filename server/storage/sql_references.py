"""Needed blobs in SQL; see :class:`server.storage.reference_store.ReferenceTransaction`."""

from __future__ import annotations

from sqlalchemy import Column, ColumnElement, and_, exists, select

from server.storage.sql_rows import SqlRows
from server.storage.tables import adapters, rounds, updates

_AFTER_HEX = "z"  # sorts behind every hex digit, in every language


class SqlReferences(SqlRows):
    """The part of a transaction that tells which blobs are needed."""

    def needed_digests(self, prefix: str, closed_before: float) -> set[str]:
        """Return the digests of all needed blobs that begin with a prefix."""
        columns = (adapters.c.digest, adapters.c.master_digest, adapters.c.optimizer_digest)
        queries = [select(column).where(_begins(column, prefix)) for column in columns]
        of_updates = select(updates.c.digest).where(_begins(updates.c.digest, prefix))
        queries.append(of_updates.where(~_is_closed_before(closed_before)))
        return {digest for query in queries for digest in self._names(query)}


def _begins(column: Column[str], prefix: str) -> ColumnElement[bool]:
    """Say that a hex digest begins with a prefix, as a range that an index can answer."""
    return and_(column >= prefix, column < prefix + _AFTER_HEX)


def _is_closed_before(closed_before: float) -> ColumnElement[bool]:
    """Say that the round an update is counted in was closed earlier: an adapter is that old.

    A relay does not have the adapter of every round, but later ones.
    """
    return exists().where(
        rounds.c.task == updates.c.task,
        rounds.c.number == updates.c.counted_in,
        rounds.c.state == "closed",
        adapters.c.task == rounds.c.task,
        adapters.c.version >= rounds.c.adapter_version,
        adapters.c.created_at < closed_before,
    )
