"""What the server remembers of how adapter versions did on devices: sums, and who has reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """The reports about one adapter version, added up; one report alone is the same with one.

    Attributes:
        task: Name of the task.
        version: That was evaluated.
        devices: That reported.
        accepted: Of them, those that use the version since.
        examples: They evaluated it on, all together.
        loss_before: Sum over devices of examples times mean loss without the version.
        loss_after: The same with it.
        hits: Sum over devices of examples times accuracy with it; 0 where there is no accuracy.
    """

    task: str
    version: int
    devices: int
    accepted: int
    examples: int
    loss_before: float
    loss_after: float
    hits: float


class EvaluationTransaction(Protocol):
    """How adapter versions did on devices."""

    def add_evaluation(self, row: EvaluationRow, device_id: str) -> bool:
        """Add one device's report to its version, and mark that the device has reported.

        Only the sums and the mark are kept. Returns False, and changes nothing, if the device has
        reported on this version before.
        """

    def evaluations(self, task: str) -> list[EvaluationRow]:
        """Return the sums of every version of a task that has reports, oldest first."""

    def newest_evaluations(self, min_devices: int) -> dict[str, EvaluationRow]:
        """Return, by task, the newest version that at least so many devices reported on."""
