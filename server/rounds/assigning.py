"""Give a device its work in a round: new, as it was, or at the smaller sketch size it needs now."""

from __future__ import annotations

from dataclasses import replace

from edge_sdk.sketch import derive_seed
from server.rules.relay_rules import why_not_relayed
from server.rules.rounds import Round
from server.storage.lookup import find_last_adapter
from server.storage.store import AssignmentRow, TaskRow, Transaction


def has_work(
    tx: Transaction, task: TaskRow, current: Round, device_id: str, relay_for: int | None = None
) -> bool:
    """Say whether a round has work for a device: its own of before, or a place in the cohort.

    A relay gets all its places or none. They are kept free for it until the first deadline.

    Args:
        tx: Of reading.
        task: The task.
        current: Its latest round, as it must be now.
        device_id: Who asks.
        relay_for: Devices it speaks for, if it is a relay.
    """
    number = current.number
    if current.state != "open" or tx.accepted(task.name, number, device_id) is not None:
        return False
    if tx.assignment(task.name, number, device_id) is not None:
        return True
    places = task.spec.policy.cohort_size
    taken = tx.count_seats(task.name, number, current.stretch_at)
    is_prolonged = current.stretch_at > current.opened_at
    if relay_for is None and not is_prolonged and why_not_relayed(task.spec) is None:
        taken += tx.count_reserved(task.name, number, places)
    return taken + (relay_for or 1) <= places


def assign(
    tx: Transaction,
    task: TaskRow,
    current: Round,
    device_id: str,
    k: int,
    now: float,
    relay_for: int | None = None,
) -> AssignmentRow | None:
    """Return the work of a device in a round as it must be now, or nothing.

    Args:
        tx: Of writing; the work is stored in it.
        task: The task.
        current: Its latest round, as it must be now.
        device_id: Who asks.
        k: The largest sketch size of the task that the device can afford.
        now: Seconds since 1970.
        relay_for: Devices it speaks for, if it is a relay.

    Returns:
        ``None`` if the round is over for this device, or takes no more devices.
    """
    if not has_work(tx, task, current, device_id, relay_for):
        return None
    number = current.number
    before = tx.assignment(task.name, number, device_id)
    if before is not None:
        return _at_most(tx, before, k)
    is_balanced = task.spec.policy.sketching == "balanced"
    row = AssignmentRow(
        task=task.name,
        round_number=number,
        device_id=device_id,
        k=k,
        seed=derive_seed(task.seed, number, device_id),
        adapter_version=find_last_adapter(tx, task.name).version,
        assigned_at=now,
        drawn_from=tx.take_draws(task.name, k) if is_balanced else None,
        members=relay_for,
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
