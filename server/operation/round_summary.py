"""Add up one round: who took part, what it cost on the network, what it reported."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from server.operation.overview_messages import LeftOut, MemoryClass, RoundSummary, SketchClass
from server.rules.rounds import Round
from server.storage.store import AssignmentRow, Transaction, UpdateRow

MOST_LEFT_OUT = 20
"""Late and quarantined updates that are named one by one."""

_GB = 10**9
_MEMORY_EDGES_BYTES = (0, _GB // 4, _GB // 2, _GB, 2 * _GB, 4 * _GB, 8 * _GB, 16 * _GB)


def summarize_round(tx: Transaction, row: Round, full_rank_bytes: int) -> RoundSummary:
    """Return what a round added up to.

    Args:
        tx: Of reading.
        row: The round.
        full_rank_bytes: Size of a tensor body at rank r.
    """
    assignments = tx.assignments(row.task, row.number)
    updates = tx.updates(row.task, row.number)
    in_time = [update for update in updates if update.round_number == row.number]
    counted = [update for update in updates if update.quarantine is None]
    loss, lowest, highest = _losses(counted)
    return RoundSummary(
        round_number=row.number,
        state=row.state,
        opened_at=row.opened_at,
        closed_at=_closed_at(tx, row),
        adapter_version=row.adapter_version,
        assigned=sum(work.members or 1 for work in assignments),
        accepted=sum(update.members for update in counted),
        late=sum(update.round_number != row.number for update in counted),
        quarantined=len(updates) - len(counted),
        missing=len(assignments) - len(in_time),
        loss=loss,
        lowest_loss=lowest,
        highest_loss=highest,
        download_bytes=sum(work.download_bytes for work in assignments),
        upload_bytes=sum(update.size_bytes for update in updates),
        full_download_bytes=full_rank_bytes * sum(work.download_bytes > 0 for work in assignments),
        full_upload_bytes=full_rank_bytes * len(updates),
        by_k=_by_k(assignments, in_time),
        by_memory=_by_memory(in_time),
        left_out=_left_out(tx, updates),
    )


def _closed_at(tx: Transaction, row: Round) -> float | None:
    if row.adapter_version is None:
        return None
    adapter = tx.adapter(row.task, row.adapter_version)
    return adapter.created_at if adapter else None


def _losses(counted: Sequence[UpdateRow]) -> tuple[float | None, float | None, float | None]:
    """Return the mean loss weighted by examples, the lowest and the highest.

    A device may report any finite number: the weights are made shares first, so that no sum
    leaves the range of floats.
    """
    if not counted:
        return None, None, None
    examples = sum(update.examples for update in counted)
    lowest = min(update.loss for update in counted)
    highest = max(update.loss for update in counted)
    mean = sum(update.examples / examples * update.loss for update in counted)
    return min(max(mean, lowest), highest), lowest, highest


def _by_k(assignments: Sequence[AssignmentRow], in_time: Sequence[UpdateRow]) -> list[SketchClass]:
    k_of = {work.device_id: work.k for work in assignments}
    classes = []
    for k in sorted(set(k_of.values())):
        updates = [update for update in in_time if k_of[update.device_id] == k]
        classes.append(
            SketchClass(
                k=k,
                devices=sum(size == k for size in k_of.values()),
                updates=len(updates),
                seconds=median_low(x.seconds for x in updates) if updates else None,
                peak_rss_bytes=max((x.peak_rss_bytes for x in updates), default=None),
                upload_bytes=median_low(x.size_bytes for x in updates) if updates else None,
            )
        )
    return classes


def _by_memory(in_time: Sequence[UpdateRow]) -> list[MemoryClass]:
    """Return the ranges of memory from the lowest to the highest that any device is in."""
    ends = (*_MEMORY_EDGES_BYTES[1:], None)
    classes = [
        MemoryClass(
            from_bytes=start,
            below_bytes=end,
            devices=sum(
                x.peak_rss_bytes >= start and (end is None or x.peak_rss_bytes < end)
                for x in in_time
            ),
        )
        for start, end in zip(_MEMORY_EDGES_BYTES, ends, strict=True)
    ]
    used = [i for i, found in enumerate(classes) if found.devices]
    return classes[used[0] : used[-1] + 1] if used else []


def _left_out(tx: Transaction, updates: Sequence[UpdateRow]) -> list[LeftOut]:
    odd = [x for x in updates if x.quarantine is not None or x.round_number != x.counted_in]
    newest = sorted(odd, key=lambda x: (-x.accepted_at, x.device_id))[:MOST_LEFT_OUT]
    return [
        LeftOut(
            kind="late" if x.quarantine is None else "quarantined",
            round_number=x.round_number,
            counted_in=x.counted_in,
            device_id=x.device_id,
            device_name=name_of(tx, x.device_id),
            staleness=x.staleness,
            reason=x.quarantine,
            accepted_at=x.accepted_at,
        )
        for x in newest
    ]


def name_of(tx: Transaction, device_id: str) -> str:
    """Return the name of a device, or its id if it is not known any more."""
    device = tx.device(device_id)
    return device.name if device else device_id
