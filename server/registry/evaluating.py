"""How adapter versions did on devices: reports are added up, and shown once enough have come."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.errors import ConfigError
from edge_sdk.wire.messages import EvaluationReport
from edge_sdk.wire.protocol import check_protocol
from edge_sdk.wire.task import TaskSpec
from server.storage.evaluation_store import EvaluationRow
from server.storage.lookup import find_adapter, find_task
from server.storage.store import Store, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How one adapter version did on the held-out examples of several devices.

    Attributes:
        devices: That reported, each once.
        accepted: Of them, those that use the version since.
        examples: They evaluated it on, all together.
        loss_before: Mean loss over these examples without the version.
        loss_after: The same with it.
        accuracy: Share of these examples it classifies rightly; None unless it is a classifier's.
    """

    devices: int
    accepted: int
    examples: int
    loss_before: float
    loss_after: float
    accuracy: float | None


class Evaluations:
    """Takes reports.

    Args:
        store: Where the sums are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(self, device_id: str, task: str, report: EvaluationReport) -> None:
        """Add a device's report to the sums of its version; a second one changes nothing.

        Raises:
            NotFound: No such task or version.
            ConfigError: An accuracy of a model that classifies nothing, or a classifier's without.
            ProtocolMismatch: The device speaks another version of the protocol.
        """
        check_protocol(report.protocol)
        with self._store.write() as tx:
            _check_accuracy(find_task(tx, task).spec, report)
            find_adapter(tx, task, report.version)
            tx.add_evaluation(_row(task, report), device_id)


def shown_evaluations(tx: Transaction, task: str, min_devices: int) -> dict[int, Evaluation]:
    """Return what may be shown of a task's versions: those that enough devices reported on."""
    rows = tx.evaluations(task)
    is_classifier = _is_classifier(find_task(tx, task).spec)
    return {x.version: _mean(x, is_classifier) for x in rows if x.devices >= min_devices}


def _is_classifier(spec: TaskSpec) -> bool:
    return spec.base.task_type == "SEQ_CLS"


def _check_accuracy(spec: TaskSpec, report: EvaluationReport) -> None:
    if (report.accuracy is not None) is not _is_classifier(spec):
        raise ConfigError(
            f"accuracy={report.accuracy} of task {spec.name!r}, whose base model is a "
            f"{spec.base.task_type}: a classifier's report has one, no other has"
        )


def _row(task: str, report: EvaluationReport) -> EvaluationRow:
    return EvaluationRow(
        task=task,
        version=report.version,
        devices=1,
        accepted=int(report.accepted),
        examples=report.examples,
        loss_before=report.examples * report.loss_before,
        loss_after=report.examples * report.loss_after,
        hits=report.examples * (report.accuracy or 0.0),
    )


def _mean(row: EvaluationRow, is_classifier: bool) -> Evaluation:
    return Evaluation(
        devices=row.devices,
        accepted=row.accepted,
        examples=row.examples,
        loss_before=row.loss_before / row.examples,
        loss_after=row.loss_after / row.examples,
        accuracy=row.hits / row.examples if is_classifier else None,
    )
