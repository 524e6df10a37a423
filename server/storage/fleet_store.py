"""What all tasks add up to: the rows, and the one question that a transaction answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True, kw_only=True)
class TaskCounts:
    """One task in numbers.

    Attributes:
        rounds: How many are in each state.
        updates: How many were accepted ``on_time``, ``late`` for a later round, or
            ``quarantined``; each is one of these.
        upload_bytes: Of all accepted updates.
        download_bytes: Of all slices.
        adapter_version: The latest.
        closed_at: When the latest round was closed, seconds since 1970; ``None`` if none was.
    """

    rounds: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("open", "closing", "closed"), 0)
    )
    updates: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("on_time", "late", "quarantined"), 0)
    )
    upload_bytes: int = 0
    download_bytes: int = 0
    adapter_version: int = 0
    closed_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetCounts:
    """All tasks in numbers, by name, and how many devices are enrolled and not revoked."""

    devices: int
    tasks: dict[str, TaskCounts]


class FleetTransaction(Protocol):
    """Numbers over all tasks."""

    def fleet_counts(self) -> FleetCounts:
        """Return what all tasks add up to, counted by the database."""
