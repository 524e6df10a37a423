"""Moves rounds along: every request of a device and every look of an operator ends here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from edge_sdk.errors import StorageError, WrongBaseModel
from edge_sdk.wire.messages import (
    AdapterInfo,
    Assignment,
    CheckIn,
    CheckInReply,
    Receipt,
    RoundStatus,
)
from edge_sdk.wire.payload import content_digest_of
from edge_sdk.wire.protocol import check_protocol
from edge_sdk.wire.task import BaseModel, TaskSpec
from server.blobs.blobs import Blobs, Upload
from server.failpoints import hit
from server.rounds.adapters import AdapterShelf
from server.rounds.assigning import assign, has_work
from server.rounds.closing import Closing
from server.rounds.counting import find_destination
from server.rounds.standing import due_round, store_round
from server.rounds.submission import Submission
from server.rules.cohort import choose_sketch_size
from server.rules.relay_rules import check_relay
from server.rules.rounds import Round, is_finished
from server.storage.lookup import (
    find_adapter,
    find_assignment,
    find_last_adapter,
    find_round,
    find_task,
)
from server.storage.store import AdapterRow, AssignmentRow, Store, TaskRow, Transaction

log = logging.getLogger(__name__)

_CLOSING_S = 0.25
"""Seconds a device is told to stay away while a round is being closed."""

Clock = Callable[[], float]
ByteStream = Callable[[int, int], Iterator[bytes]]


class Coordinator:
    """The rules of the server, without HTTP.

    Args:
        store: Where rows are.
        blobs: Where tensors are.
        clock: Seconds since 1970.
        poll_s: When a waiting device is told to come back.
        wake: Set after an accepted update, for whoever calls :meth:`advance`.
        publish: Told the task of every round that was looked at; makes new versions known.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        clock: Clock = time.time,
        poll_s: float = 2.0,
        wake: threading.Event | None = None,
        publish: Callable[[str], None] = lambda _task: None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._poll_s = poll_s
        self._shelf = AdapterShelf(blobs)
        self._submission = Submission(store, blobs, clock, (wake or threading.Event()).set)
        self._closing = Closing(store, blobs, self._shelf, clock)
        self._publish = publish

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

    def check_in(
        self, device_id: str, task_name: str, message: CheckIn, relay_for: int | None = None
    ) -> CheckInReply:
        """Give a device work, ask it to wait, or tell it that the task is finished.

        Opens the next round if none is running. A device that asks again gets the assignment it
        already has, or a smaller sketch of the same round if it can no longer afford that. A relay
        gets all ranks, whole.

        Args:
            device_id: Who asks.
            task_name: Of the task.
            message: What it says of itself.
            relay_for: Devices it speaks for, if its token is for relays.

        Raises:
            NotFound: There is no such task.
            ProtocolMismatch: The device speaks another version.
            WrongBaseModel: It holds another base model.
            ConfigError: It can afford no sketch size of the task; what it has stays as it is. Or
                the task takes no relays, or not with such a token.
        """
        check_protocol(message.protocol)
        now = self._clock()
        with self._store.read() as tx:  # most devices ask while there is nothing for them to do
            task = find_task(tx, task_name)
            _check_base(task.spec.base, message)
            check_relay(task.spec, relay_for, message.is_relay)
            k = _sketch_size(task.spec, message.affordable_k, relay_for)
            current = due_round(tx, task, now)
            if current == tx.round(task.name, current.number):
                if _has_ended(tx, task, current):
                    return CheckInReply(state="finished", round_number=current.number)
                if not has_work(tx, task, current, device_id, relay_for):
                    return self._wait(task, current)
        with self._store.write() as tx:
            current = due_round(tx, task, now)
            store_round(tx, task, current)
            before = tx.assignment(task.name, current.number, device_id)
            row = assign(tx, task, current, device_id, k, now, relay_for)
            hit("before-assignment-commit")
        hit("after-assignment-commit")
        if row is None:
            return self._wait(task, current)
        _log_if_smaller(before, row)
        return CheckInReply(
            state="assigned",
            round_number=current.number,
            assignment=_as_message(row, task.spec, max(0.0, current.deadline_at - now)),
        )

    def _wait(self, task: TaskRow, current: Round) -> CheckInReply:
        """Ask a device to come back: soon if the next round is about to open."""
        is_soon = current.state == "closing" and not task.is_relayed
        pause_s = min(self._poll_s, _CLOSING_S) if is_soon else self._poll_s
        return CheckInReply(state="wait", round_number=current.number, retry_after_s=pause_s)

    def slice_for(self, device_id: str, task: str, number: int) -> bytes:
        """Return the tensor body of a device's assignment and count the download.

        Raises:
            NotFound: No such task or round.
            NotAssigned: The device has no work in the round.
            RoundClosed: Its result would come too late.
        """
        with self._store.read() as tx:
            row = find_task(tx, task)
            find_round(tx, task, number)
            assignment = find_assignment(tx, task, number, device_id)
            find_destination(tx, row, assignment, self._clock())
            adapter = find_adapter(tx, task, assignment.adapter_version)
        body = self._shelf.slice(row, adapter, assignment)
        with self._store.write() as tx:
            tx.add_download(assignment, len(body))
            hit("before-download-commit")
        hit("after-download-commit")
        return body

    def open_upload(self) -> AbstractContextManager[Upload]:
        """Open a file that receives the body of an update; gone at the end unless accepted."""
        return self._blobs.upload()

    def expect_update(self, device_id: str, task: str, number: int) -> int:
        """Return the most bytes an update may have; see :meth:`Submission.expect`."""
        return self._submission.expect(device_id, task, number)

    def find_receipt(self, device_id: str, task: str, number: int, digest: str) -> Receipt | None:
        """Return the receipt of an accepted update; see :meth:`Submission.find_receipt`."""
        return self._submission.find_receipt(device_id, task, number, digest)

    def accept_update(
        self, device_id: str, task: str, number: int, upload: Upload, content_digest: str | None
    ) -> Receipt:
        """Make an update durable, once; see :meth:`Submission.accept`."""
        return self._submission.accept(device_id, task, number, upload, content_digest)

    def accept_parts(
        self, device_id: str, task: str, number: int, upload: Upload, digest: str
    ) -> Receipt:
        """Make an update durable whose parts were put together; see :meth:`Submission.accept`."""
        announced = content_digest_of(digest)
        return self._submission.accept(
            device_id, task, number, upload, announced, came_in_parts=True
        )

    def round_status(self, task: str, number: int) -> RoundStatus:
        """Return one round as the fleet may see it.

        Raises:
            NotFound: No such task or round.
        """
        now = self._clock()
        with self._store.read() as tx:
            find_task(tx, task)
            current = find_round(tx, task, number)
            assigned = tx.count_assignments(task, number)
            accepted = tx.count_updates(task, number)
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

    def adapter_body(self, task: str, version: int) -> tuple[AdapterInfo, ByteStream]:
        """Return one version, and what yields the bytes of its tensor file between two places.

        Raises:
            NotFound: No such task or version.
            StorageError: The file is gone, or no longer of its size.
        """
        with self._store.read() as tx:
            find_task(tx, task)
            row = find_adapter(tx, task, version)
        if self._blobs.size(row.digest) != row.size_bytes:
            raise StorageError(f"the tensor file {row.digest} was damaged: restore it")
        return _as_info(row), partial(self._blobs.stream, row.digest)

    def unfinished(self) -> list[tuple[str, int]]:
        """Return task and number of every round that is not closed."""
        with self._store.read() as tx:
            return [(row.task, row.number) for row in tx.unfinished_rounds()]

    def advance(self, task: str, number: int) -> None:
        """Do what is due for one round, unless another process is at it; see :class:`Closing`."""
        with self._store.exclusive(f"closing {task}") as is_held:
            if is_held:
                self._closing.advance(task, number)
                self._publish(task)


def _sketch_size(spec: TaskSpec, affordable_k: int, relay_for: int | None) -> int:
    return spec.adapter.r if relay_for else choose_sketch_size(spec.policy, affordable_k)


def _has_ended(tx: Transaction, task: TaskRow, current: Round) -> bool:
    """Say whether a task is finished; behind a relay, once its last version has come."""
    if not is_finished(current, task.spec.policy):
        return False
    return not task.is_relayed or find_last_adapter(tx, task.name).version >= current.number


def _check_base(base: BaseModel, message: CheckIn) -> None:
    if message.base_digest != base.digest:
        raise WrongBaseModel(
            f"the device holds weights with SHA-256 {message.base_digest[:12]}…, the task needs "
            f"{base.model} with {base.digest[:12]}…: fetch that model"
        )


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
        members=row.members or 1,
    )


def _as_info(row: AdapterRow) -> AdapterInfo:
    return AdapterInfo(
        version=row.version,
        round_number=row.round_number,
        digest=row.digest,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
    )
