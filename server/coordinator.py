"""Moves rounds along: every request of a device and every look of an operator ends here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from edge_sdk.errors import RoundClosed, WrongBaseModel
from edge_sdk.wire.messages import (
    AdapterInfo,
    Assignment,
    BaseModel,
    CheckIn,
    CheckInReply,
    Enrolment,
    EnrolRequest,
    Receipt,
    RoundStatus,
    TaskSpec,
    check_protocol,
)
from server.adapters import AdapterShelf
from server.assigning import assign
from server.auth import Gate
from server.blobs import BlobFolder, Upload
from server.closing import Closing
from server.cohort import choose_sketch_size
from server.lookup import find_adapter, find_assignment, find_round, find_task
from server.rounds import Round, is_finished, may_open_next, next_state, open_round
from server.store import AdapterRow, AssignmentRow, DeviceRow, Store, TaskRow, Transaction
from server.submission import Submission

log = logging.getLogger(__name__)

Clock = Callable[[], float]


class Coordinator:
    """The rules of the server, without HTTP.

    Args:
        store: Where rows are.
        blobs: Where tensors are.
        clock: Seconds since 1970.
        poll_s: When a waiting device is told to come back.
        wake: Set after an accepted update, for whoever calls :meth:`advance`.
    """

    def __init__(
        self,
        store: Store,
        blobs: BlobFolder,
        clock: Clock = time.time,
        poll_s: float = 2.0,
        wake: threading.Event | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._poll_s = poll_s
        self._shelf = AdapterShelf(blobs)
        self._gate = Gate(store, clock)
        self._submission = Submission(store, blobs, clock, (wake or threading.Event()).set)
        self._closing = Closing(store, blobs, self._shelf, clock)

    def enrol(self, request: EnrolRequest) -> Enrolment:
        """Give a new device its identity; see :meth:`server.auth.Gate.enrol`."""
        return self._gate.enrol(request)

    def authenticate(self, device_token: str | None) -> DeviceRow:
        """Return the device of a token; see :meth:`server.auth.Gate.authenticate`."""
        return self._gate.authenticate(device_token)

    def tasks(self) -> list[str]:
        """Return the names of all tasks."""
        with self._store.read() as tx:
            return tx.task_names()

    def task(self, name: str) -> TaskSpec:
        """Return what the fleet of a task agrees on.

        Raises:
            NotFound: There is no such task.
        """
        with self._store.read() as tx:
            return find_task(tx, name).spec

    def check_in(self, device_id: str, task_name: str, message: CheckIn) -> CheckInReply:
        """Give a device work, ask it to wait, or tell it that the task is finished.

        Opens the next round if none is running. A device that asks again gets the assignment it
        already has, or a smaller sketch of the same round if it can no longer afford that.

        Raises:
            NotFound: There is no such task.
            ProtocolMismatch: The device speaks another version.
            WrongBaseModel: It holds another base model.
            ConfigError: It can afford no sketch size of the task; what it has stays as it is.
        """
        check_protocol(message.protocol)
        now = self._clock()
        with self._store.write() as tx:
            task = find_task(tx, task_name)
            _check_base(task.spec.base, message)
            k = choose_sketch_size(task.spec.policy, message.affordable_k)
            current = _current_round(tx, task, now)
            if is_finished(current, task.spec.policy):
                return CheckInReply(state="finished", round_number=current.number)
            before = tx.assignment(task.name, current.number, device_id)
            row = assign(tx, task, current, device_id, k, now)
        if row is None:
            return CheckInReply(
                state="wait", round_number=current.number, retry_after_s=self._poll_s
            )
        _log_if_smaller(before, row)
        return CheckInReply(
            state="assigned",
            round_number=current.number,
            assignment=_as_message(row, task.spec, max(0.0, current.deadline_at - now)),
        )

    def slice_for(self, device_id: str, task: str, number: int) -> bytes:
        """Return the tensor body of a device's assignment and count the download.

        Raises:
            NotFound: No such task or round.
            NotAssigned: The device has no work in the round.
            RoundClosed: Its result would come too late.
        """
        with self._store.read() as tx:
            spec = find_task(tx, task).spec
            current = find_round(tx, task, number)
            assignment = find_assignment(tx, task, number, device_id)
            if current.state != "open":
                raise RoundClosed(f"round {number} of {task!r} is over: check in for the next one")
            adapter = find_adapter(tx, task, assignment.adapter_version)
        body = self._shelf.slice(spec.adapter, adapter, assignment)
        with self._store.write() as tx:
            tx.add_download(assignment, len(body))
        return body

    def open_upload(self) -> AbstractContextManager[Upload]:
        """Open a file that receives the body of an update; gone at the end unless accepted."""
        return self._blobs.upload()

    def expect_update(self, device_id: str, task: str, number: int) -> int:
        """Return the most bytes an update may have; see :meth:`Submission.expect`."""
        return self._submission.expect(device_id, task, number)

    def accept_update(
        self, device_id: str, task: str, number: int, upload: Upload, content_digest: str | None
    ) -> Receipt:
        """Make an update durable and count it once; see :meth:`Submission.accept`."""
        return self._submission.accept(device_id, task, number, upload, content_digest)

    def round_status(self, task: str, number: int) -> RoundStatus:
        """Return one round as the fleet may see it.

        Raises:
            NotFound: No such task or round.
        """
        now = self._clock()
        with self._store.read() as tx:
            find_task(tx, task)
            current = find_round(tx, task, number)
            assigned, accepted = len(tx.assignments(task, number)), tx.count_updates(task, number)
        is_open = current.state == "open"
        return RoundStatus(
            round_number=number,
            state=current.state,
            assigned=assigned,
            accepted=accepted,
            deadline_s=max(0.0, current.deadline_at - now) if is_open else 0.0,
            adapter_version=current.adapter_version,
        )

    def adapters(self, task: str) -> list[AdapterInfo]:
        """Return all versions of a task's adapter, oldest first.

        Raises:
            NotFound: There is no such task.
        """
        with self._store.read() as tx:
            find_task(tx, task)
            return [_as_info(row) for row in tx.adapters(task)]

    def adapter_file(self, task: str, version: int) -> tuple[AdapterInfo, Path]:
        """Return one version and where its tensor file is.

        Raises:
            NotFound: No such task or version.
        """
        with self._store.read() as tx:
            find_task(tx, task)
            row = find_adapter(tx, task, version)
        return _as_info(row), self._blobs.path(row.digest)

    def unfinished(self) -> list[tuple[str, int]]:
        """Return task and number of every round that is not closed."""
        with self._store.read() as tx:
            return [(row.task, row.number) for row in tx.unfinished_rounds()]

    def advance(self, task: str, number: int) -> None:
        """Do what is due for one round; see :meth:`Closing.advance`."""
        self._closing.advance(task, number)


def _check_base(base: BaseModel, message: CheckIn) -> None:
    if message.base_digest != base.digest:
        raise WrongBaseModel(
            f"the device holds weights with SHA-256 {message.base_digest[:12]}…, the task needs "
            f"{base.model} with {base.digest[:12]}…: fetch that model"
        )


def _current_round(tx: Transaction, task: TaskRow, now: float) -> Round:
    """Return the latest round as it must be now, opening the next one if it is time."""
    policy = task.spec.policy
    last = tx.last_round(task.name)
    if last is None or may_open_next(last, policy):
        opened = open_round(task.name, last.number + 1 if last else 1, policy, now)
        tx.add_round(opened)
        return opened
    due = next_state(last, tx.count_updates(task.name, last.number), policy, now)
    if due != last:
        tx.update_round(due)
    return due


def _log_if_smaller(before: AssignmentRow | None, after: AssignmentRow) -> None:
    if before is not None and after.k < before.k:
        log.info(
            "round %d of %s: device %s stepped down from k=%d to k=%d",
            after.round_number,
            after.task,
            after.device_id,
            before.k,
            after.k,
        )


def _as_message(row: AssignmentRow, spec: TaskSpec, deadline_s: float) -> Assignment:
    return Assignment(
        task=row.task,
        round_number=row.round_number,
        adapter_version=row.adapter_version,
        k=row.k,
        seed=row.seed,
        training=spec.training,
        deadline_s=deadline_s,
    )


def _as_info(row: AdapterRow) -> AdapterInfo:
    return AdapterInfo(
        version=row.version,
        round_number=row.round_number,
        digest=row.digest,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
    )
