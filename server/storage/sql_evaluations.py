"""Evaluations in SQL; see :class:`server.storage.evaluation_store.EvaluationTransaction`."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import func, insert, select, update

from server.storage.evaluation_store import EvaluationRow
from server.storage.evaluation_tables import evaluations, evaluators
from server.storage.sql_rows import SqlRows

_KEY = ("task", "version")


class SqlEvaluations(SqlRows):
    """The part of a transaction that adds up how versions did."""

    def add_evaluation(self, row: EvaluationRow, device_id: str) -> bool:
        """Add one device's report to its version, and mark that the device has reported."""
        mark = {"task": row.task, "version": row.version, "device_id": device_id}
        if self._connection.execute(select(evaluators).filter_by(**mark)).first() is not None:
            return False
        self._connection.execute(insert(evaluators).values(**mark))
        sums = {name: value for name, value in asdict(row).items() if name not in _KEY}
        added = self._connection.execute(
            update(evaluations)
            .where(evaluations.c.task == row.task, evaluations.c.version == row.version)
            .values(**{name: evaluations.c[name] + value for name, value in sums.items()})
        )
        if added.rowcount == 0:
            self._insert(evaluations, row)
        return True

    def evaluations(self, task: str) -> list[EvaluationRow]:
        """Return the sums of every version of a task that has reports, oldest first."""
        query = select(evaluations).where(evaluations.c.task == task)
        return self._all(EvaluationRow, query.order_by(evaluations.c.version))

    def newest_evaluations(self, min_devices: int) -> dict[str, EvaluationRow]:
        """Return, by task, the newest version that at least so many devices reported on."""
        table = evaluations
        newest = (
            select(table.c.task, func.max(table.c.version).label("version"))
            .where(table.c.devices >= min_devices)
            .group_by(table.c.task)
            .subquery()
        )
        is_newest = (newest.c.task == table.c.task) & (newest.c.version == table.c.version)
        found = self._all(EvaluationRow, select(table).join(newest, is_newest))
        return {row.task: row for row in found}
