"""Accept one update: checked against the server's own record, durable, counted once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from edge_sdk.errors import MalformedPayload, ServerBusy, UpdateConflict
from edge_sdk.wire import payload
from edge_sdk.wire.messages import Receipt, UpdateReport, decode_message
from edge_sdk.wire.protocol import check_protocol
from edge_sdk.wire.task import TaskSpec
from edge_sdk.wire.update_body import decode_update, update_limit
from server.access.upload_quota import day_of
from server.aggregation.weighted_mean import check_magnitude
from server.blobs.blobs import Blobs, Upload
from server.failpoints import hit
from server.rounds.counting import Destination, find_destination
from server.rounds.partial_sum import check_sum, sum_limit
from server.rounds.standing import store_round
from server.rules.rounds import next_state
from server.rules.screening import update_norm, why_too_large
from server.storage.lookup import find_assignment, find_round, find_task
from server.storage.store import AssignmentRow, Store, TaskRow, Transaction, UpdateRow

log = logging.getLogger(__name__)

_DECODED_AT_ONCE = 2
_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """The round an update was trained for, and who sends it."""

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
        blobs: Blobs,
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
            ServerBusy: Late, and the round it will count in is not open yet.
        """
        place = _Place(task=task, number=number, device_id=device_id)
        with self._store.read() as tx:
            row, assignment = _work(tx, place)
            if tx.accepted(task, number, device_id) is None:
                _open_destination(tx, row, assignment, self._clock())
        if assignment.members is not None:
            return sum_limit(row.spec.adapter)
        return update_limit(row.spec, assignment.k)

    def find_receipt(self, device_id: str, task: str, number: int, digest: str) -> Receipt | None:
        """Return the receipt of an update that was accepted before.

        Raises:
            NotFound: No such task or round.
            NotAssigned: The device has no work in the round.
            UpdateConflict: Another update of the device was accepted before.
        """
        place = _Place(task=task, number=number, device_id=device_id)
        with self._store.read() as tx:
            _work(tx, place)
            return _receipt(place, digest) if _is_repeated(tx, place, digest) else None

    def accept(
        self,
        device_id: str,
        task: str,
        number: int,
        upload: Upload,
        content_digest: str | None,
        *,
        came_in_parts: bool = False,
    ) -> Receipt:
        """Make an update durable; the same bytes again get the same receipt.

        An update whose numbers are larger than the task allows is kept, and part of no mean.

        Args:
            device_id: Who sends it.
            task: Name of the task.
            number: Of the round it was trained for.
            upload: The complete body.
            content_digest: The ``Content-Digest`` header.
            came_in_parts: Its bytes were counted for the day's quota as they came.

        Raises:
            NotFound: No such task or round.
            NotAssigned: The device has no work in the round.
            DigestMismatch: The body is not what was announced.
            UpdateConflict: Another update of the device was accepted before.
            RoundClosed: Too late.
            ServerBusy: Late, and the round it will count in is not open yet.
            MalformedPayload: Not the tensors of the assignment, such as those of the larger one
                it was before the device stepped down; or a relay's sum that cannot be.
            MalformedMessage: No valid report inside.
            NotFinite: NaN, infinity, or a step beyond all measure.
            StorageError: The disk refused.
        """
        place = _Place(task=task, number=number, device_id=device_id)
        with self._decoding:
            body = upload.read()
            digest = payload.check_content_digest(body, content_digest)
            with self._store.read() as tx:
                found, assignment = _work(tx, place)
                if _is_repeated(tx, place, digest):
                    return _receipt(place, digest)
                _open_destination(tx, found, assignment, self._clock())
            check = _check_body if assignment.members is None else _check_sum
            row = check(place, found.spec, assignment, body, digest, self._clock())
            del body
        hit("before-update-kept")
        self._blobs.keep(upload, digest)
        hit("after-update-kept")
        self._record(place, assignment.k, row, came_in_parts)
        self._wake()
        return _receipt(place, digest)

    def _record(self, place: _Place, k: int, row: UpdateRow, came_in_parts: bool) -> None:
        """Count a durable update of sketch size ``k`` once; freeze the round at the quorum."""
        now = self._clock()
        with self._store.write() as tx:
            if _is_repeated(tx, place, row.digest):
                return
            task, assignment = _work(tx, place)
            destination = _open_destination(tx, task, assignment, now)
            _check_still(place, assignment.k, k)
            number = destination.round.number
            current = tx.round(task.name, number) or destination.round
            row = replace(row, counted_in=number, staleness=destination.staleness)
            tx.add_update(row)
            if came_in_parts:
                tx.add_wasted_bytes(place.device_id, day_of(row.accepted_at), -row.size_bytes)
            accepted = tx.count_updates(task.name, number)
            store_round(tx, task, next_state(current, accepted, task.spec.policy, now))
            hit("before-update-commit")
        hit("after-update-commit")
        _log_if_special(place, row)


def _work(tx: Transaction, place: _Place) -> tuple[TaskRow, AssignmentRow]:
    task = find_task(tx, place.task)
    find_round(tx, place.task, place.number)
    return task, find_assignment(tx, place.task, place.number, place.device_id)


def _is_repeated(tx: Transaction, place: _Place, digest: str) -> bool:
    """Say whether this very update was accepted before."""
    before = tx.accepted(place.task, place.number, place.device_id)
    if before is not None and before.digest != digest:
        raise UpdateConflict(
            f"{place.text} already has an update of this device, with SHA-256 "
            f"{before.digest[:12]}…, not {digest[:12]}…: check in for the next round"
        )
    return before is not None


def _open_destination(
    tx: Transaction, task: TaskRow, assignment: AssignmentRow, now: float
) -> Destination:
    """Return the open round in which an update counts that arrives now."""
    destination = find_destination(tx, task, assignment, now)
    if destination.round.state != "open":
        raise ServerBusy(
            f"round {destination.round.number} of {task.name!r} is being closed; the update of "
            f"round {assignment.round_number} counts in the next one: send it again",
            _RETRY_AFTER_S,
        )
    return destination


def _check_still(place: _Place, k_now: int, k: int) -> None:
    """Refuse tensors of a size that was right when they were checked, and no longer is.

    The round is folded with the size that is stored, so what is recorded must have that size.
    """
    if k_now != k:
        raise MalformedPayload(
            f"the update has k={k}, but while it was sent the device stepped down to k={k_now} in "
            f"{place.text}: fetch the slice again and train that"
        )


def _check_body(
    place: _Place,
    spec: TaskSpec,
    assignment: AssignmentRow,
    body: bytes,
    digest: str,
    now: float,
) -> UpdateRow:
    """Return the row of an update that is what was assigned, as if it came in time."""
    k = assignment.k
    try:
        update, message = decode_update(body, spec, k)
    except MalformedPayload as error:
        raise MalformedPayload(
            f"{error}; this device has k={k} in {place.text}: fetch the slice again if it trained "
            "another size"
        ) from error
    report = decode_message(UpdateReport, message)
    check_protocol(report.protocol)
    check_magnitude(update, spec.aggregation.server_lr)
    return _row(place, spec, report, update_norm(update), len(body), digest, now)


def _check_sum(
    place: _Place,
    spec: TaskSpec,
    assignment: AssignmentRow,
    body: bytes,
    digest: str,
    now: float,
) -> UpdateRow:
    """Return the row of a relay's sum that its devices can have made, as if it came in time."""
    found = check_sum(spec, body, assignment.members or 1)
    return replace(
        _row(place, spec, found.report, found.norm, len(body), digest, now),
        members=found.report.members,
        weight=found.report.weight,
        rank_members=found.rank_members,
    )


def _row(
    place: _Place,
    spec: TaskSpec,
    report: UpdateReport,
    norm: float,
    size_bytes: int,
    digest: str,
    now: float,
) -> UpdateRow:
    return UpdateRow(
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
        counted_in=place.number,
        norm=norm,
        quarantine=why_too_large(norm, spec.aggregation),
    )


def _log_if_special(place: _Place, row: UpdateRow) -> None:
    if row.quarantine is not None:
        log.warning(
            "%s: the update of device %s is quarantined: %s",
            place.text,
            place.device_id,
            row.quarantine,
        )
    if row.counted_in != row.round_number:
        log.info(
            "%s: the late update of device %s counts in round %d, %d versions behind",
            place.text,
            place.device_id,
            row.counted_in,
            row.staleness,
        )


def _receipt(place: _Place, digest: str) -> Receipt:
    return Receipt(task=place.task, round_number=place.number, digest=digest)
