"""Rows that a request names, or the error that says which one is missing."""

from __future__ import annotations

from edge_sdk.errors import NotAssigned, NotFound
from server.rules.rounds import Round
from server.storage.store import AdapterRow, AssignmentRow, TaskRow, Transaction, UpdateRow


def find_task(tx: Transaction, name: str) -> TaskRow:
    """Return a task.

    Raises:
        NotFound: There is none of this name.
    """
    task = tx.task(name)
    if task is None:
        raise NotFound(f"there is no task {name!r} on this server")
    return task


def find_round(tx: Transaction, task: str, number: int) -> Round:
    """Return a round of an existing task.

    Raises:
        NotFound: It was never opened.
    """
    found = tx.round(task, number)
    if found is None:
        raise NotFound(f"task {task!r} has no round {number}")
    return found


def find_adapter(tx: Transaction, task: str, version: int) -> AdapterRow:
    """Return an adapter version of an existing task.

    Raises:
        NotFound: There is no such version.
    """
    found = tx.adapter(task, version)
    if found is None:
        raise NotFound(f"task {task!r} has no adapter version {version}")
    return found


def find_last_adapter(tx: Transaction, task: str) -> AdapterRow:
    """Return the latest adapter version of an existing task.

    Raises:
        NotFound: There is none.
    """
    found = tx.last_adapter(task)
    if found is None:
        raise NotFound(f"task {task!r} has no adapter version")
    return found


def find_assignment(tx: Transaction, task: str, number: int, device_id: str) -> AssignmentRow:
    """Return the work of a device in an existing round.

    Raises:
        NotAssigned: It got none.
    """
    found = tx.assignment(task, number, device_id)
    if found is None:
        raise NotAssigned(f"this device has no work in round {number} of {task!r}: check in first")
    return found


def find_counted(tx: Transaction, task: str, number: int) -> list[tuple[UpdateRow, AssignmentRow]]:
    """Return what the mean of a round is made of: each update with the record of its work.

    They come in the order of :meth:`server.storage.store.RoundTransaction.updates`.
    """
    updates = [row for row in tx.updates(task, number) if row.quarantine is None]
    work = {
        (row.round_number, row.device_id): row
        for origin in {update.round_number for update in updates}
        for row in tx.assignments(task, origin)
    }
    return [(update, work[update.round_number, update.device_id]) for update in updates]
