"""Give a device its work in a round: new, as it was, or at the smaller sketch size it needs now."""

from __future__ import annotations

from dataclasses import replace

from edge_sdk.sketch import derive_seed
from server.cohort import has_free_seat
from server.rounds import Round
from server.store import AssignmentRow, TaskRow, Transaction


def assign(
    tx: Transaction, task: TaskRow, current: Round, device_id: str, k: int, now: float
) -> AssignmentRow | None:
    """Return the work of a device in a round as it must be now, or nothing.

    Args:
        tx: Of writing; the work is stored in it.
        task: The task.
        current: Its latest round, as it must be now.
        device_id: Who asks.
        k: The largest sketch size of the task that the device can afford.
        now: Seconds since 1970.

    Returns:
        ``None`` if the round is over for this device, or takes no more devices.
    """
    number = current.number
    if current.state != "open" or tx.accepted(task.name, number, device_id) is not None:
        return None
    before = tx.assignment(task.name, number, device_id)
    if before is not None:
        return _at_most(tx, before, k)
    assigned_at = {row.device_id: row.assigned_at for row in tx.assignments(task.name, number)}
    accepted = {row.device_id for row in tx.updates(task.name, number)}
    if not has_free_seat(task.spec.policy, assigned_at, accepted, current.stretch_at):
        return None
    row = AssignmentRow(
        task=task.name,
        round_number=number,
        device_id=device_id,
        k=k,
        seed=derive_seed(task.seed, number, device_id),
        adapter_version=tx.adapters(task.name)[-1].version,
        assigned_at=now,
    )
    tx.add_assignment(row)
    return row


def _at_most(tx: Transaction, before: AssignmentRow, k: int) -> AssignmentRow:
    """Return an assignment as it was, or shrunk to what the device can still afford.

    It never grows: the device may have fetched the slice and be training it.
    """
    if k >= before.k:
        return before
    tx.shrink_assignment(before, k)
    return replace(before, k=k)
