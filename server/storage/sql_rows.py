"""Rows of any table in SQL: dataclasses in and out of one connection."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, Table, insert

Row = TypeVar("Row")


class SqlRows:
    """What every part of a transaction is made of."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _insert(self, table: Table, row: Any) -> None:
        self._connection.execute(insert(table).values(**asdict(row)))

    def _one(self, kind: type[Row], query: Select[Any]) -> Row | None:
        found = self._connection.execute(query).mappings().first()
        return None if found is None else kind(**found)

    def _all(self, kind: type[Row], query: Select[Any]) -> list[Row]:
        return [kind(**found) for found in self._connection.execute(query).mappings()]

    def _names(self, query: Select[Any]) -> list[str]:
        return list(self._connection.execute(query).scalars())
