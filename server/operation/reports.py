"""What an operator sees of tasks and rounds."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.wire.messages import RoundState
from server.storage.lookup import find_last_adapter, find_task
from server.storage.store import Store, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """One task in a list.

    Attributes:
        name: Of the task.
        model: Of the base model.
        r: Global rank.
        rounds: Rounds until it is finished.
        closed: Rounds that are closed.
        adapter_version: The latest.
    """

    name: str
    model: str
    r: int
    rounds: int
    closed: int
    adapter_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """One device in a round; what comes from its update is ``None`` until it is accepted.

    Attributes:
        device_id: Of the device.
        name: Given by its owner.
        k: Sketch size.
        download_bytes: All slices it fetched.
        upload_bytes: Its accepted update.
        examples: Training examples it holds.
        loss: Mean training loss over its local steps.
        seconds: Wall time of its local steps.
        peak_rss_bytes: Peak memory of its process.
        counted_in: The round whose mean its update is part of; a later one if it came late.
        quarantine: Why its update is part of no mean, if it is not.
    """

    device_id: str
    name: str
    k: int
    download_bytes: int
    upload_bytes: int | None
    examples: int | None
    loss: float | None
    seconds: float | None
    peak_rss_bytes: int | None
    counted_in: int | None
    quarantine: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One round with its devices, by device id; times in seconds since 1970.

    ``accepted`` are the updates in its mean, those of older rounds too.
    """

    round_number: int
    state: RoundState
    opened_at: float
    deadline_at: float
    adapter_version: int | None
    accepted: int
    devices: list[DeviceReport]


def task_reports(store: Store) -> list[TaskReport]:
    """Return every task, by name."""
    with store.read() as tx:
        return [_task_report(tx, name) for name in tx.task_names()]


def round_reports(store: Store, task: str) -> list[RoundReport]:
    """Return every round of a task, by number.

    Raises:
        NotFound: There is no such task.
    """
    with store.read() as tx:
        find_task(tx, task)
        return [
            RoundReport(
                round_number=row.number,
                state=row.state,
                opened_at=row.opened_at,
                deadline_at=row.deadline_at,
                adapter_version=row.adapter_version,
                accepted=tx.count_updates(task, row.number),
                devices=_devices(tx, task, row.number),
            )
            for row in tx.rounds(task)
        ]


def _task_report(tx: Transaction, name: str) -> TaskReport:
    spec = find_task(tx, name).spec
    return TaskReport(
        name=name,
        model=spec.base.model,
        r=spec.adapter.r,
        rounds=spec.policy.rounds,
        closed=sum(row.state == "closed" for row in tx.rounds(name)),
        adapter_version=find_last_adapter(tx, name).version,
    )


def _devices(tx: Transaction, task: str, number: int) -> list[DeviceReport]:
    reports = []
    for row in tx.assignments(task, number):
        device, update = tx.device(row.device_id), tx.accepted(task, number, row.device_id)
        reports.append(
            DeviceReport(
                device_id=row.device_id,
                name=device.name if device else row.device_id,
                k=row.k,
                download_bytes=row.download_bytes,
                upload_bytes=update.size_bytes if update else None,
                examples=update.examples if update else None,
                loss=update.loss if update else None,
                seconds=update.seconds if update else None,
                peak_rss_bytes=update.peak_rss_bytes if update else None,
                counted_in=update.counted_in if update and update.quarantine is None else None,
                quarantine=update.quarantine if update else None,
            )
        )
    return reports
