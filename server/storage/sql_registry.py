"""Signed adapters in SQL; see :class:`server.storage.registry_store.RegistryTransaction`."""

from __future__ import annotations

from sqlalchemy import and_, insert, select, update

from server.storage import registry_tables as tables
from server.storage.registry_store import PointerRow, SigningKeyRow
from server.storage.sql_rows import SqlRows
from server.storage.tables import adapters


class SqlRegistry(SqlRows):
    """The part of a transaction that says what devices may trust."""

    def add_signing_key(self, row: SigningKeyRow) -> None:
        """Insert a public key."""
        self._insert(tables.signing_keys, row)

    def signing_keys(self) -> list[SigningKeyRow]:
        """Return all public keys, oldest first."""
        table = tables.signing_keys
        return self._all(SigningKeyRow, select(table).order_by(table.c.number))

    def add_manifest(self, task: str, version: int, signed: str) -> None:
        """Insert the signed manifest of an adapter version, as JSON."""
        self._connection.execute(
            insert(tables.manifests).values(task=task, version=version, signed=signed)
        )

    def manifest(self, task: str, version: int) -> str | None:
        """Return the signed manifest of an adapter version."""
        table = tables.manifests
        query = select(table.c.signed).where(table.c.task == task, table.c.version == version)
        return self._connection.execute(query).scalar_one_or_none()

    def manifests(self) -> list[tuple[str, int, str]]:
        """Return task, version and signed manifest of every version that has one."""
        table = tables.manifests
        query = select(table.c.task, table.c.version, table.c.signed)
        found = self._connection.execute(query.order_by(table.c.task, table.c.version))
        return [(task, version, signed) for task, version, signed in found]

    def replace_manifest(self, task: str, version: int, signed: str) -> None:
        """Change the signature of a manifest."""
        table = tables.manifests
        self._connection.execute(
            update(table)
            .where(table.c.task == task, table.c.version == version)
            .values(signed=signed)
        )

    def unsigned_versions(self, task: str) -> list[int]:
        """Return the adapter versions that have no manifest yet, in order."""
        table = tables.manifests
        is_same = and_(table.c.task == adapters.c.task, table.c.version == adapters.c.version)
        query = (
            select(adapters.c.version)
            .select_from(adapters.outerjoin(table, is_same))
            .where(adapters.c.task == task, table.c.version.is_(None))
            .order_by(adapters.c.version)
        )
        return list(self._connection.execute(query).scalars())

    def add_pointer(self, row: PointerRow) -> None:
        """Insert a state of a channel."""
        self._insert(tables.pointers, row)

    def pointers(self, task: str) -> list[PointerRow]:
        """Return all states of a task's channel, oldest first."""
        table = tables.pointers
        query = select(table).where(table.c.task == task).order_by(table.c.sequence)
        return self._all(PointerRow, query)

    def last_pointer(self, task: str) -> PointerRow | None:
        """Return the state a task's channel has now."""
        table = tables.pointers
        query = select(table).where(table.c.task == task).order_by(table.c.sequence.desc())
        return self._one(PointerRow, query.limit(1))

    def replace_pointer(self, row: PointerRow, signed: str) -> None:
        """Change the signature of a pointer."""
        table = tables.pointers
        self._connection.execute(
            update(table)
            .where(table.c.task == row.task, table.c.sequence == row.sequence)
            .values(signed=signed)
        )
