"""What all tasks add up to, in SQL; see :class:`server.storage.fleet_store.FleetTransaction`."""

from __future__ import annotations

from sqlalchemy import case, func, select

from server.storage import access_tables, tables
from server.storage.fleet_store import FleetCounts, TaskCounts
from server.storage.sql_rows import SqlRows


class SqlFleet(SqlRows):
    """The part of a transaction that counts."""

    def fleet_counts(self) -> FleetCounts:
        """Return what all tasks add up to, counted by the database."""
        names = self._connection.execute(select(tables.tasks.c.name)).scalars()
        found = {name: TaskCounts() for name in names}
        self._count_rounds(found)
        self._count_updates(found)
        self._count_downloads(found)
        self._look_at_adapters(found)
        return FleetCounts(devices=self._count_devices(), tasks=found)

    def _count_devices(self) -> int:
        is_welcome = access_tables.devices.c.revoked_at.is_(None)
        return self._connection.execute(select(func.count()).where(is_welcome)).scalar_one()

    def _count_rounds(self, found: dict[str, TaskCounts]) -> None:
        table = tables.rounds
        query = select(table.c.task, table.c.state, func.count())
        for task, state, count in self._connection.execute(
            query.group_by(table.c.task, table.c.state)
        ):
            found[task].rounds[state] = count

    def _count_updates(self, found: dict[str, TaskCounts]) -> None:
        table = tables.updates
        outcome = case(
            (table.c.quarantine.is_not(None), "quarantined"),
            (table.c.round_number < table.c.counted_in, "late"),
            else_="on_time",
        ).label("outcome")
        query = select(table.c.task, outcome, func.count(), func.sum(table.c.size_bytes))
        for task, name, count, size_bytes in self._connection.execute(
            query.group_by(table.c.task, "outcome")
        ):
            found[task].updates[name] = count
            found[task].upload_bytes += int(size_bytes)

    def _count_downloads(self, found: dict[str, TaskCounts]) -> None:
        table = tables.assignments
        query = select(table.c.task, func.sum(table.c.download_bytes)).group_by(table.c.task)
        for task, size_bytes in self._connection.execute(query):
            found[task].download_bytes = int(size_bytes)

    def _look_at_adapters(self, found: dict[str, TaskCounts]) -> None:
        table = tables.adapters
        closed_at = func.max(case((table.c.round_number > 0, table.c.created_at)))
        query = select(table.c.task, func.max(table.c.version), closed_at).group_by(table.c.task)
        for task, version, moment in self._connection.execute(query):
            found[task].adapter_version = version
            found[task].closed_at = moment
