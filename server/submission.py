"""Accept one update: checked against the server's own record, durable, counted once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from edge_sdk.errors import MalformedPayload, RoundClosed, UpdateConflict
from edge_sdk.wire import payload
from edge_sdk.wire.messages import Receipt, TaskSpec, UpdateReport, check_protocol, decode_message
from server.aggregation import check_magnitude
from server.blobs import BlobFolder, Upload
from server.lookup import find_assignment, find_round, find_task
from server.rounds import next_state
from server.store import AssignmentRow, Store, Transaction, UpdateRow

_DECODED_AT_ONCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """The round an update is for, and who sends it."""

    task: str
    number: int
    device_id: str

    @property
    def text(self) -> str:
        return f"round {self.number} of {self.task!r}"


class Submission:
    """The way of an update into a round.

    Args:
        store: Where rows go.
        blobs: Where tensors go.
        clock: Seconds since 1970.
        wake: Called after an accepted update.
    """

    def __init__(
        self,
        store: Store,
        blobs: BlobFolder,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._wake = wake
        self._decoding = threading.BoundedSemaphore(_DECODED_AT_ONCE)

    def expect(self, device_id: str, task: str, number: int) -> int:
        """Return how many bytes the device's update may have, before any is read.

        Raises:
            NotFound: No such task or round.
            NotAssigned: The device has no work in the round.
            RoundClosed: Too late, and there is no earlier update to repeat.
        """
        place = _Place(task=task, number=number, device_id=device_id)
        with self._store.read() as tx:
            spec, assignment = _work(tx, place)
            if tx.accepted(task, number, device_id) is None:
                _check_open(tx, place, spec, self._clock())
        return payload.body_limit(spec.adapter, assignment.k)

    def accept(
        self, device_id: str, task: str, number: int, upload: Upload, content_digest: str | None
    ) -> Receipt:
        """Make an update durable; the same bytes again get the same receipt.

        Args:
            device_id: Who sends it.
            task: Name of the task.
            number: Of the round.
            upload: The complete body.
            content_digest: The ``Content-Digest`` header.

        Raises:
            NotFound: No such task or round.
            NotAssigned: The device has no work in the round.
            DigestMismatch: The body is not what was announced.
            UpdateConflict: Another update of the device was accepted before.
            RoundClosed: Too late.
            MalformedPayload: Not the tensors of the assignment, such as those of the larger one
                it was before the device stepped down.
            MalformedMessage: No valid report inside.
            NotFinite: NaN, infinity, or a step beyond all measure.
            StorageError: The disk refused.
        """
        place = _Place(task=task, number=number, device_id=device_id)
        with self._decoding:
            body = upload.read()
            digest = payload.check_content_digest(body, content_digest)
            with self._store.read() as tx:
                spec, assignment = _work(tx, place)
                if _is_repeated(tx, place, digest):
                    return _receipt(place, digest)
                _check_open(tx, place, spec, self._clock())
            report = _check_body(place, spec, assignment.k, body)
        size_bytes = len(body)
        del body
        self._blobs.keep(upload, digest)
        self._record(place, spec, assignment.k, digest, size_bytes, report)
        self._wake()
        return _receipt(place, digest)

    def _record(
        self,
        place: _Place,
        spec: TaskSpec,
        k: int,
        digest: str,
        size_bytes: int,
        report: UpdateReport,
    ) -> None:
        """Count a durable update of sketch size ``k`` once; freeze the round at the quorum."""
        now = self._clock()
        row = UpdateRow(
            task=place.task,
            round_number=place.number,
            device_id=place.device_id,
            digest=digest,
            size_bytes=size_bytes,
            examples=report.examples,
            loss=report.loss,
            seconds=report.seconds,
            peak_rss_bytes=report.peak_rss_bytes,
            accepted_at=now,
        )
        with self._store.write() as tx:
            if _is_repeated(tx, place, digest):
                return
            _check_open(tx, place, spec, now)
            _check_still(tx, place, k)
            tx.add_update(row)
            current = find_round(tx, place.task, place.number)
            accepted = tx.count_updates(place.task, place.number)
            tx.update_round(next_state(current, accepted, spec.policy, now))


def _work(tx: Transaction, place: _Place) -> tuple[TaskSpec, AssignmentRow]:
    spec = find_task(tx, place.task).spec
    find_round(tx, place.task, place.number)
    return spec, find_assignment(tx, place.task, place.number, place.device_id)


def _is_repeated(tx: Transaction, place: _Place, digest: str) -> bool:
    """Say whether this very update was accepted before."""
    before = tx.accepted(place.task, place.number, place.device_id)
    if before is not None and before.digest != digest:
        raise UpdateConflict(
            f"{place.text} already has an update of this device, with SHA-256 "
            f"{before.digest[:12]}…, not {digest[:12]}…: check in for the next round"
        )
    return before is not None


def _check_open(tx: Transaction, place: _Place, spec: TaskSpec, now: float) -> None:
    """Refuse an update for a round that is frozen, or due to be although nobody looked yet."""
    current = find_round(tx, place.task, place.number)
    accepted = tx.count_updates(place.task, place.number)
    if next_state(current, accepted, spec.policy, now).state != "open":
        raise RoundClosed(f"{place.text} takes no more updates: check in for the next one")


def _check_still(tx: Transaction, place: _Place, k: int) -> None:
    """Refuse tensors of a size that was right when they were checked, and no longer is.

    The round is folded with the size that is stored, so what is recorded must have that size.
    """
    now = find_assignment(tx, place.task, place.number, place.device_id).k
    if now != k:
        raise MalformedPayload(
            f"the update has k={k}, but while it was sent the device stepped down to k={now} in "
            f"{place.text}: fetch the slice again and train that"
        )


def _check_body(place: _Place, spec: TaskSpec, k: int, body: bytes) -> UpdateReport:
    shapes = payload.adapter_shapes(spec.adapter, k)
    try:
        update, message = payload.decode(body, shapes, spec.adapter.wire_dtype)
    except MalformedPayload as error:
        raise MalformedPayload(
            f"{error}; this device has k={k} in {place.text}: fetch the slice again if it trained "
            "another size"
        ) from error
    report = decode_message(UpdateReport, message)
    check_protocol(report.protocol)
    check_magnitude(update, spec.policy.server_lr)
    return report


def _receipt(place: _Place, digest: str) -> Receipt:
    return Receipt(task=place.task, round_number=place.number, digest=digest)
