"""Where a task stands: its latest round as it must be now, and the one way of storing it."""

from __future__ import annotations

import logging

from server.rules.rounds import Round, may_open_next, next_state, open_round
from server.rules.screening import outliers
from server.storage.store import TaskRow, Transaction

log = logging.getLogger(__name__)


def due_round(tx: Transaction, task: TaskRow, now: float) -> Round:
    """Return the latest round of a task as it must be now, or the next one if it is time.

    The rounds of a relayed task are opened by its relay, with those of the upstream server.
    """
    policy = task.spec.policy
    last = tx.last_round(task.name)
    if last is None:
        return open_round(task.name, 1, policy, now)
    if may_open_next(last, policy) and not task.is_relayed:
        return open_round(task.name, last.number + 1, policy, now)
    return next_state(last, tx.count_updates(task.name, last.number), policy, now)


def store_round(tx: Transaction, task: TaskRow, after: Round) -> None:
    """Store a round as it must be now.

    In the transaction that freezes it, updates that are outliers among those it has are
    quarantined. That happens once: whoever aggregates the frozen round, however often, finds
    the same updates.

    Args:
        tx: Of writing.
        task: The task.
        after: One of its rounds, new or changed.
    """
    before = tx.round(task.name, after.number)
    if before is None:
        tx.add_round(after)
    elif after != before:
        tx.update_round(after)
    if after.state == "closing" and (before is None or before.state == "open"):
        _quarantine_outliers(tx, task, after.number)


def _quarantine_outliers(tx: Transaction, task: TaskRow, number: int) -> None:
    counted = [row for row in tx.updates(task.name, number) if row.quarantine is None]
    reasons = outliers([row.norm for row in counted], task.spec.aggregation)
    for row, reason in zip(counted, reasons, strict=True):
        if reason is not None:
            tx.quarantine(row, reason)
            log.warning(
                "round %d of %s: the update of device %s is quarantined: %s",
                number,
                task.name,
                row.device_id,
                reason,
            )
