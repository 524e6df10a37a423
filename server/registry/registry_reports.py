"""What an operator sees of adapter versions: where each came from and who uses it."""

from __future__ import annotations

from dataclasses import dataclass

from server.registry.evaluating import Evaluation, shown_evaluations
from server.storage.lookup import find_task
from server.storage.registry_store import PointerRow
from server.storage.store import AdapterRow, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReport:
    """One adapter version in a list.

    Attributes:
        version: 0 is the initial adapter.
        round_number: The round that made it; 0 for the initial one.
        parent_version: The version that round started from.
        updates: How many updates its mean is of.
        mean_loss: Mean of the training losses their devices reported; None without any.
        channels: ``latest``, ``stable``, ``canary``, none or several of them.
        canary_share: Share of the devices that use it as the canary.
        follows_latest: Whether ``stable`` moves on by itself.
        is_signed: Whether devices can use it.
        digest: SHA-256 of its tensor file.
        size_bytes: Of its tensor file.
        created_at: Seconds since 1970.
        evaluation: How it did on devices; None while too few have reported.
    """

    version: int
    round_number: int
    parent_version: int | None
    updates: int
    mean_loss: float | None
    channels: list[str]
    canary_share: float
    follows_latest: bool
    is_signed: bool
    digest: str
    size_bytes: int
    created_at: float
    evaluation: Evaluation | None


def version_reports(store: Store, task: str, min_evaluating_devices: int) -> list[VersionReport]:
    """Return every adapter version of a task, oldest first.

    Args:
        store: Where rows are.
        task: Name of the task.
        min_evaluating_devices: That must have reported on a version before that is shown.

    Raises:
        NotFound: There is no such task.
    """
    with store.read() as tx:
        find_task(tx, task)
        rows, tip = tx.adapters(task), tx.last_pointer(task)
        means, unsigned = tx.mean_losses(task), set(tx.unsigned_versions(task))
        evaluations = shown_evaluations(tx, task, min_evaluating_devices)
    return [
        _report(
            row,
            tip,
            mean=means.get(row.round_number),
            is_latest=row is rows[-1],
            is_signed=row.version not in unsigned,
            evaluation=evaluations.get(row.version),
        )
        for row in rows
    ]


def _report(
    row: AdapterRow,
    tip: PointerRow | None,
    *,
    mean: tuple[int, float] | None,
    is_latest: bool,
    is_signed: bool,
    evaluation: Evaluation | None,
) -> VersionReport:
    is_canary = tip is not None and row.version == tip.canary_version
    is_stable = tip is not None and row.version == tip.version
    named = {"latest": is_latest, "stable": is_stable, "canary": is_canary}
    return VersionReport(
        version=row.version,
        round_number=row.round_number,
        parent_version=row.version - 1 if row.version else None,
        updates=mean[0] if mean else 0,
        mean_loss=mean[1] if mean else None,
        channels=[name for name, is_so in named.items() if is_so],
        canary_share=tip.canary_share if tip is not None and is_canary else 0.0,
        follows_latest=is_stable and tip is not None and tip.follows_latest,
        is_signed=is_signed,
        digest=row.digest,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        evaluation=evaluation,
    )
