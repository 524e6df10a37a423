"""Tasks, rounds and their results in SQL; see :class:`server.storage.store.RoundTransaction`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    and_,
    case,
    exists,
    func,
    insert,
    select,
    update,
)

from edge_sdk.errors import MalformedMessage, StorageError
from edge_sdk.wire.messages import decode_message, encode_message
from edge_sdk.wire.task import TaskSpec
from server.rules.rounds import Round
from server.storage import tables
from server.storage.access_tables import devices
from server.storage.sql_rows import SqlRows
from server.storage.store import AdapterRow, AssignmentRow, TaskRow, UpdateRow


class SqlRounds(SqlRows):
    """The part of a transaction that tells where every task stands."""

    def add_task(self, row: TaskRow) -> None:
        """Insert a task."""
        self._connection.execute(
            insert(tables.tasks).values(
                name=row.name,
                spec=encode_message(row.spec).decode(),
                seed=row.seed,
                created_at=row.created_at,
                drawn=0,
                is_relayed=row.is_relayed,
            )
        )

    def task(self, name: str) -> TaskRow | None:
        """Return a task."""
        query = select(tables.tasks).where(tables.tasks.c.name == name)
        found = self._connection.execute(query).mappings().first()
        if found is None:
            return None
        return TaskRow(
            name=found["name"],
            spec=_decode_spec(found["name"], found["spec"]),
            seed=found["seed"],
            created_at=found["created_at"],
            is_relayed=found["is_relayed"],
        )

    def task_names(self) -> list[str]:
        """Return the names of all tasks, sorted."""
        return self._names(select(tables.tasks.c.name).order_by(tables.tasks.c.name))

    def take_draws(self, task: str, count: int) -> int:
        """Return how many ranks the task's balanced draws have given out, and add ``count``."""
        table, here = tables.tasks, tables.tasks.c.name == task
        before: int = self._connection.execute(select(table.c.drawn).where(here)).scalar_one()
        self._connection.execute(update(table).where(here).values(drawn=before + count))
        return before

    def add_round(self, row: Round) -> None:
        """Insert a round."""
        self._insert(tables.rounds, row)

    def update_round(self, row: Round) -> None:
        """Overwrite a round."""
        table = tables.rounds
        self._connection.execute(
            update(table)
            .where(table.c.task == row.task, table.c.number == row.number)
            .values(**asdict(row))
        )

    def round(self, task: str, number: int) -> Round | None:
        """Return a round."""
        table = tables.rounds
        return self._one(Round, select(table).where(table.c.task == task, table.c.number == number))

    def last_round(self, task: str) -> Round | None:
        """Return the latest round of a task."""
        table = tables.rounds
        query = select(table).where(table.c.task == task).order_by(table.c.number.desc())
        return self._one(Round, query.limit(1))

    def rounds(self, task: str) -> list[Round]:
        """Return all rounds of a task by number."""
        table = tables.rounds
        return self._all(Round, select(table).where(table.c.task == task).order_by(table.c.number))

    def unfinished_rounds(self) -> list[Round]:
        """Return every round of any task that is not closed."""
        table = tables.rounds
        query = select(table).where(table.c.state.in_(["open", "closing"]))
        return self._all(Round, query.order_by(table.c.task, table.c.number))

    def add_assignment(self, row: AssignmentRow) -> None:
        """Insert an assignment."""
        self._insert(tables.assignments, row)

    def assignment(self, task: str, number: int, device_id: str) -> AssignmentRow | None:
        """Return the assignment of a device in a round."""
        query = _of_device(tables.assignments, task, number, device_id)
        return self._one(AssignmentRow, query)

    def assignments(self, task: str, number: int) -> list[AssignmentRow]:
        """Return the assignments of a round by device id."""
        return self._all(AssignmentRow, _of_round(tables.assignments, task, number))

    def count_assignments(self, task: str, number: int) -> int:
        """Return how many devices were given work in a round, those behind relays too."""
        table = tables.assignments
        devices = func.coalesce(func.sum(func.coalesce(table.c.members, 1)), 0)
        query = select(devices).where(table.c.task == task, table.c.round_number == number)
        return int(self._connection.execute(query).scalar_one())

    def count_seats(self, task: str, number: int, stretch_at: float) -> int:
        """Return how many places in the cohort of a round are taken; a relay takes several."""
        given, sent = tables.assignments, tables.updates
        is_sent = and_(
            sent.c.task == given.c.task,
            sent.c.round_number == given.c.round_number,
            sent.c.device_id == given.c.device_id,
        )
        is_held = case(
            (sent.c.device_id.is_(None), given.c.assigned_at >= stretch_at),
            else_=sent.c.quarantine.is_(None),
        )
        places = func.coalesce(sent.c.members, given.c.members, 1)
        query = select(func.coalesce(func.sum(places), 0))
        query = query.select_from(given.outerjoin(sent, is_sent))
        query = query.where(given.c.task == task, given.c.round_number == number, is_held)
        return int(self._connection.execute(query).scalar_one())

    def count_reserved(self, task: str, number: int, most: int) -> int:
        """Return how many places relays may still ask for that have no work in a round yet."""
        device, given = devices, tables.assignments
        has_work = exists().where(
            given.c.task == task,
            given.c.round_number == number,
            given.c.device_id == device.c.id,
        )
        query = select(func.coalesce(func.sum(device.c.relay_for), 0))
        query = query.where(device.c.relay_for <= most, device.c.revoked_at.is_(None), ~has_work)
        return int(self._connection.execute(query).scalar_one())

    def shrink_assignment(self, row: AssignmentRow, k: int) -> None:
        """Change the sketch size of an assignment, and nothing else of it."""
        self._connection.execute(
            update(tables.assignments).where(_is_of(tables.assignments, row)).values(k=k)
        )

    def add_download(self, row: AssignmentRow, size_bytes: int) -> None:
        """Count one download of the slice of an assignment."""
        counted = tables.assignments.c.download_bytes + size_bytes
        self._connection.execute(
            update(tables.assignments)
            .where(_is_of(tables.assignments, row))
            .values(download_bytes=counted)
        )

    def add_update(self, row: UpdateRow) -> None:
        """Insert an accepted update."""
        self._insert(tables.updates, row)

    def accepted(self, task: str, number: int, device_id: str) -> UpdateRow | None:
        """Return the accepted update of a device in a round."""
        return self._one(UpdateRow, _of_device(tables.updates, task, number, device_id))

    def updates(self, task: str, number: int) -> list[UpdateRow]:
        """Return the updates counted in a round, quarantined ones too."""
        table = tables.updates
        query = select(table).where(table.c.task == task, table.c.counted_in == number)
        return self._all(UpdateRow, query.order_by(table.c.round_number.desc(), table.c.device_id))

    def count_updates(self, task: str, number: int) -> int:
        """Return how many devices' updates are part of a round's mean."""
        table = tables.updates
        query = select(func.coalesce(func.sum(table.c.members), 0)).where(
            table.c.task == task, table.c.counted_in == number, table.c.quarantine.is_(None)
        )
        return int(self._connection.execute(query).scalar_one())

    def mean_losses(self, task: str) -> dict[int, tuple[int, float]]:
        """Return, for rounds with updates in their mean, how many devices and their mean loss."""
        table = tables.updates
        members = func.sum(table.c.members)
        mean = func.sum(table.c.loss * table.c.members) / members
        query = (
            select(table.c.counted_in, members, mean)
            .where(table.c.task == task, table.c.quarantine.is_(None))
            .group_by(table.c.counted_in)
        )
        return {number: (count, loss) for number, count, loss in self._connection.execute(query)}

    def quarantine(self, row: UpdateRow, reason: str) -> None:
        """Take an update out of the mean of its round."""
        self._connection.execute(
            update(tables.updates).where(_is_of(tables.updates, row)).values(quarantine=reason)
        )

    def participation(self, task: str) -> dict[str, tuple[int, int]]:
        """Return how many accepted updates a device has, and the round of its first one."""
        table = tables.updates
        query = (
            select(table.c.device_id, func.count(), func.min(table.c.round_number))
            .where(table.c.task == task, table.c.quarantine.is_(None))
            .group_by(table.c.device_id)
        )
        return {device: (count, first) for device, count, first in self._connection.execute(query)}

    def add_adapter(self, row: AdapterRow) -> None:
        """Insert an adapter version."""
        self._insert(tables.adapters, row)

    def adapter(self, task: str, version: int) -> AdapterRow | None:
        """Return an adapter version."""
        table = tables.adapters
        query = select(table).where(table.c.task == task, table.c.version == version)
        return self._one(AdapterRow, query)

    def last_adapter(self, task: str) -> AdapterRow | None:
        """Return the latest adapter version of a task."""
        table = tables.adapters
        query = select(table).where(table.c.task == task).order_by(table.c.version.desc())
        return self._one(AdapterRow, query.limit(1))

    def adapters(self, task: str) -> list[AdapterRow]:
        """Return all adapter versions of a task, oldest first."""
        table = tables.adapters
        query = select(table).where(table.c.task == task).order_by(table.c.version)
        return self._all(AdapterRow, query)


def _decode_spec(task: str, text: str) -> TaskSpec:
    try:
        return decode_message(TaskSpec, text.encode())
    except MalformedMessage as error:
        raise StorageError(f"task {task!r} was damaged in the database: {error}") from error


def _of_round(table: Table, task: str, number: int) -> Select[Any]:
    query = select(table).where(table.c.task == task, table.c.round_number == number)
    return query.order_by(table.c.device_id)


def _of_device(table: Table, task: str, number: int, device_id: str) -> Select[Any]:
    return _of_round(table, task, number).where(table.c.device_id == device_id)


def _is_of(table: Table, row: AssignmentRow | UpdateRow) -> ColumnElement[bool]:
    """Say that a row is of the same device in the same round."""
    return and_(
        table.c.task == row.task,
        table.c.round_number == row.round_number,
        table.c.device_id == row.device_id,
    )
