"""The life cycle of a round as a state machine: open, then closing, then closed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge_sdk.wire.messages import RoundState
from edge_sdk.wire.task import RoundPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round of one task.

    Attributes:
        task: Name of the task.
        number: From 1.
        state: ``open`` takes updates; ``closing`` is frozen; ``closed`` has its adapter version.
        opened_at: Seconds since 1970, as all times here.
        stretch_at: When it was opened or last prolonged.
        deadline_at: When it is due.
        adapter_version: The version it produced, once closed.
    """

    task: str
    number: int
    state: RoundState
    opened_at: float
    stretch_at: float
    deadline_at: float
    adapter_version: int | None = None


def open_round(task: str, number: int, policy: RoundPolicy, now: float) -> Round:
    """Return a new round that is due ``policy.deadline_s`` from now."""
    return Round(
        task=task,
        number=number,
        state="open",
        opened_at=now,
        stretch_at=now,
        deadline_at=now + policy.deadline_s,
    )


def may_open_next(last: Round, policy: RoundPolicy) -> bool:
    """Say whether another round follows the latest one of a task, and its time has come."""
    return last.state == "closed" and last.number < policy.rounds


def is_finished(last: Round, policy: RoundPolicy) -> bool:
    """Say whether the latest round of a task was its last one and is closed."""
    return last.state == "closed" and last.number >= policy.rounds


def next_state(current: Round, accepted: int, policy: RoundPolicy, now: float) -> Round:
    """Return the round as it must be at ``now``.

    An open round is frozen as soon as the quorum is there, or at its deadline with at least
    ``min_updates``. With fewer it gets another full length: no accepted update is lost. So it
    does when the clock was set back: a deadline far ahead would hold it up.

    Args:
        current: The round as it is stored.
        accepted: Its durable updates.
        policy: Of the task.
        now: Seconds since 1970.
    """
    if current.state != "open":
        return current
    if accepted >= policy.quorum:
        return replace(current, state="closing")
    if current.stretch_at <= now < current.deadline_at:
        return current
    if now >= current.deadline_at and accepted >= policy.min_updates:
        return replace(current, state="closing")
    return replace(current, stretch_at=now, deadline_at=now + policy.deadline_s)


def close_round(current: Round, adapter_version: int) -> Round:
    """Return a frozen round as closed by the adapter version it produced."""
    if current.state != "closing":
        raise ValueError(f"round {current.number} is {current.state}; only a closing one closes")
    return replace(current, state="closed", adapter_version=adapter_version)
