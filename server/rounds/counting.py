"""In which round an update counts: its own, a later one, or none."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.errors import RoundClosed
from edge_sdk.wire.task import RoundPolicy
from server.rounds.standing import due_round
from server.rules.rounds import Round
from server.storage.lookup import find_last_adapter
from server.storage.store import AssignmentRow, TaskRow, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where an update belongs that arrives now.

    Attributes:
        round: The latest of the task, as it must be now and perhaps not yet stored. If it is not
            open, the update has to wait for the next one.
        staleness: Adapter versions the update is behind the round it will count in.
    """

    round: Round
    staleness: int


def find_destination(
    tx: Transaction, task: TaskRow, assignment: AssignmentRow, now: float
) -> Destination:
    """Return where the update of an assignment counts if it arrives now.

    Args:
        tx: Of reading.
        task: The task.
        assignment: What the device was given.
        now: Seconds since 1970.

    Raises:
        RoundClosed: Its round is over, and so is the task, the task refuses what is late, or the
            update is further behind than the task allows.
    """
    due = due_round(tx, task, now)
    version = find_last_adapter(tx, task.name).version + (due.state == "closing")
    destination = Destination(round=due, staleness=version - assignment.adapter_version)
    is_in_time = due.state == "open" and due.number == assignment.round_number
    reason = None if is_in_time else _why_refused(task.spec.policy, destination)
    if reason is not None:
        raise RoundClosed(
            f"round {assignment.round_number} of {task.name!r} takes no more updates{reason}: "
            "check in for the next one"
        )
    return destination


def _why_refused(policy: RoundPolicy, destination: Destination) -> str | None:
    """Say why a late update is of no use, or nothing if it can be folded into another round."""
    if policy.stragglers == "refuse":
        return ""
    due = destination.round
    if due.state != "open" and due.number >= policy.rounds:
        return ", and no round follows"
    if destination.staleness > policy.max_staleness:
        return (
            f", and what was trained for it is {destination.staleness} adapter versions behind, "
            f"more than max_staleness={policy.max_staleness}"
        )
    return None
