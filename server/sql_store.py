"""The Store in SQL, for SQLite today; nothing here is special to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    and_,
    func,
    insert,
    select,
    update,
)

from edge_sdk.errors import MalformedMessage, StorageError
from edge_sdk.wire.messages import TaskSpec, decode_message, encode_message
from server import tables
from server.engine import WRITING, make_engine, typed_errors
from server.migrate import upgrade_to_head
from server.rounds import Round
from server.store import AdapterRow, AssignmentRow, DeviceRow, TaskRow, Transaction, UpdateRow

Row = TypeVar("Row")


class SqlTransaction:
    """One transaction on one connection; see :class:`server.store.Transaction`."""

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

    def add_task(self, row: TaskRow) -> None:
        """Insert a task."""
        self._connection.execute(
            insert(tables.tasks).values(
                name=row.name,
                spec=encode_message(row.spec).decode(),
                seed=row.seed,
                created_at=row.created_at,
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
        )

    def task_names(self) -> list[str]:
        """Return the names of all tasks, sorted."""
        return self._names(select(tables.tasks.c.name).order_by(tables.tasks.c.name))

    def add_enrolment_token(self, token_hash: str, now: float) -> None:
        """Insert an enrolment token."""
        self._connection.execute(
            insert(tables.enrolment_tokens).values(token_hash=token_hash, created_at=now)
        )

    def enrolment_token_hashes(self) -> list[str]:
        """Return the hash of every enrolment token."""
        return self._names(select(tables.enrolment_tokens.c.token_hash))

    def add_device(self, row: DeviceRow) -> None:
        """Insert a device."""
        self._insert(tables.devices, row)

    def device(self, device_id: str) -> DeviceRow | None:
        """Return a device."""
        query = select(tables.devices).where(tables.devices.c.id == device_id)
        return self._one(DeviceRow, query)

    def device_by_token(self, token_hash: str) -> DeviceRow | None:
        """Return the device a token belongs to."""
        query = select(tables.devices).where(tables.devices.c.token_hash == token_hash)
        return self._one(DeviceRow, query)

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

    def shrink_assignment(self, row: AssignmentRow, k: int) -> None:
        """Change the sketch size of an assignment, and nothing else of it."""
        self._connection.execute(update(tables.assignments).where(_is_work(row)).values(k=k))

    def add_download(self, row: AssignmentRow, size_bytes: int) -> None:
        """Count one download of the slice of an assignment."""
        counted = tables.assignments.c.download_bytes + size_bytes
        self._connection.execute(
            update(tables.assignments).where(_is_work(row)).values(download_bytes=counted)
        )

    def add_update(self, row: UpdateRow) -> None:
        """Insert an accepted update."""
        self._insert(tables.updates, row)

    def accepted(self, task: str, number: int, device_id: str) -> UpdateRow | None:
        """Return the accepted update of a device in a round."""
        return self._one(UpdateRow, _of_device(tables.updates, task, number, device_id))

    def updates(self, task: str, number: int) -> list[UpdateRow]:
        """Return the accepted updates of a round by device id."""
        return self._all(UpdateRow, _of_round(tables.updates, task, number))

    def count_updates(self, task: str, number: int) -> int:
        """Return how many updates of a round are accepted."""
        table = tables.updates
        query = select(func.count()).where(table.c.task == task, table.c.round_number == number)
        return self._connection.execute(query).scalar_one()

    def add_adapter(self, row: AdapterRow) -> None:
        """Insert an adapter version."""
        self._insert(tables.adapters, row)

    def adapter(self, task: str, version: int) -> AdapterRow | None:
        """Return an adapter version."""
        table = tables.adapters
        query = select(table).where(table.c.task == task, table.c.version == version)
        return self._one(AdapterRow, query)

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


def _is_work(row: AssignmentRow) -> ColumnElement[bool]:
    columns = tables.assignments.c
    return and_(
        columns.task == row.task,
        columns.round_number == row.round_number,
        columns.device_id == row.device_id,
    )


class SqlStore:
    """Rows in a database; see :class:`server.store.Store`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a transaction that sees one consistent state."""
        with typed_errors(), self._engine.connect() as connection, connection.begin():
            yield SqlTransaction(connection)

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open a transaction that is alone among writers and durable when it ends."""
        with typed_errors(), self._engine.connect() as connection:
            connection = connection.execution_options(**WRITING)
            with connection.begin():
                yield SqlTransaction(connection)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()


def open_store(url: str | URL) -> SqlStore:
    """Open a database and bring its tables to the present form.

    Args:
        url: SQLAlchemy address; the folder of a SQLite file must exist.

    Raises:
        ConfigError: An address of no known database, or tables of a newer release.
        StorageError: The database cannot be opened.
    """
    engine = make_engine(url)
    with typed_errors(), engine.connect() as connection:
        connection = connection.execution_options(**WRITING)
        with connection.begin():
            upgrade_to_head(connection)
    return SqlStore(engine)
