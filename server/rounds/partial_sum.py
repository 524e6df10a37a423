"""The sum of a site's updates on its way upstream: made by a relay, checked by its upstream.

It travels as the weighted mean, a body at rank r in float32 whatever the task's number format,
with the number of devices behind every rank, and the weight of them all. The mean cannot leave the
range of its members' numbers, and mean times weight is the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import MalformedPayload
from edge_sdk.wire import payload
from edge_sdk.wire.messages import UpdateReport, decode_message, encode_message
from edge_sdk.wire.payload import Arrays, Shapes
from edge_sdk.wire.protocol import MAX_COUNT, check_protocol
from edge_sdk.wire.task import AdapterSpec, TaskSpec, WireDtype
from server.aggregation.weighted_mean import (
    RunningSum,
    WeightedUpdate,
    check_magnitude,
    weight_bounds,
)
from server.rules.screening import update_norm
from server.storage.store import UpdateRow

MEMBERS = "edge_sdk.members"
"""Tensor that says how many members trained each rank of each layer, ``(layers, r)``."""

_FORMAT: WireDtype = "fp32"
_SLACK = 1e-9  # weights are added up in another order than their bounds are multiplied


@dataclass(frozen=True, slots=True, kw_only=True)
class SumReport(UpdateReport):
    """What a relay tells about its devices: their examples, mean loss, and longest and most.

    Attributes:
        members: Devices whose updates are in the sum.
        weight: What they weigh together.
    """

    members: int
    weight: float

    def __post_init__(self) -> None:
        UpdateReport.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSum:
    """A sum that may count.

    Attributes:
        report: Of the relay.
        rank_members: As a row keeps it, see :class:`server.storage.store.UpdateRow`.
        norm: Root mean square as if the largest sketch of the task held all its numbers. That of
            a mean is never above the largest of its members.
    """

    report: SumReport
    rank_members: bytes
    norm: float


def sum_limit(adapter: AdapterSpec) -> int:
    """Return the most bytes a well-formed sum can have, headers included."""
    as_sent = replace(adapter, wire_dtype=_FORMAT)
    counts = 4 * len(adapter.layers) * adapter.r + 256
    return payload.body_limit(as_sent, adapter.r) + counts


def encode_sum(spec: AdapterSpec, total: RunningSum, rows: Sequence[UpdateRow]) -> bytes:
    """Encode a sum of at least one update; the same bytes for the same sum.

    Args:
        spec: Of the adapter.
        total: The sum; it is finished by this.
        rows: What it was made of.
    """
    members = sum(row.members for row in rows)
    report = SumReport(
        examples=min(sum(row.examples for row in rows), MAX_COUNT),
        loss=sum(row.members / members * row.loss for row in rows),
        seconds=max(row.seconds for row in rows),
        peak_rss_bytes=max(row.peak_rss_bytes for row in rows),
        members=members,
        weight=total.total_weight,
    )
    counts = {MEMBERS: total.members().astype(np.float64)}
    return payload.encode(total.finish().arrays | counts, _FORMAT, encode_message(report))


def check_sum(spec: TaskSpec, body: bytes, most_members: int) -> CheckedSum:
    """Check all that can be checked of a sum without its members.

    Args:
        spec: Of the task.
        body: What a relay sent.
        most_members: Devices it may speak for.

    Raises:
        MalformedPayload: Not the tensors of a sum, or it claims what its members cannot have done:
            more devices or weight than they are, ranks that nobody or nobody more trained.
        MalformedMessage: No valid report inside.
        ProtocolMismatch: The relay speaks another version.
        NotFinite: NaN, infinity, or a step beyond all measure.
    """
    arrays, message = payload.decode(body, _shapes(spec.adapter), _FORMAT)
    counts = arrays.pop(MEMBERS)
    report = decode_message(SumReport, message)
    check_protocol(report.protocol)
    _check_claims(spec, report, most_members)
    _check_counts(spec, counts, report.members)
    _check_untrained(spec.adapter, arrays, counts)
    check_magnitude(arrays, spec.aggregation.server_lr)
    return CheckedSum(
        report=report,
        rank_members=counts.astype("<u4").tobytes(),
        norm=_norm(spec, arrays),
    )


def read_sum(spec: AdapterSpec, body: bytes, rank_members: bytes, weight: float) -> WeightedUpdate:
    """Return an accepted sum as the fold takes it.

    Args:
        spec: Of the adapter.
        body: The same bytes that :func:`check_sum` has accepted.
        rank_members: From its row.
        weight: Of all its members.
    """
    return WeightedUpdate(
        arrays=payload.view(body, payload.adapter_shapes(spec, spec.r), _FORMAT),
        indices=[np.arange(spec.r, dtype=np.int64)] * len(spec.layers),
        weight=weight,
        members=read_members(spec, rank_members),
    )


def read_members(spec: AdapterSpec, rank_members: bytes) -> NDArray[np.int64]:
    """Return how many members trained each rank, ``(layers, r)``, from the row of a sum."""
    counts = np.frombuffer(rank_members, "<u4").reshape(len(spec.layers), spec.r)
    return counts.astype(np.int64)


def _shapes(adapter: AdapterSpec) -> Shapes:
    counts = {MEMBERS: (len(adapter.layers), adapter.r)}
    return payload.adapter_shapes(adapter, adapter.r) | counts


def _check_claims(spec: TaskSpec, report: SumReport, most_members: int) -> None:
    if not 1 <= report.members <= most_members:
        raise MalformedPayload(
            f"the sum is of {report.members} devices, this relay has places for {most_members}: "
            "ask the operator of the upstream server for a token for more"
        )
    least, most = weight_bounds(spec.aggregation, report.members)
    if not least * (1 - _SLACK) <= report.weight <= most * (1 + _SLACK):
        raise MalformedPayload(
            f"the sum weighs {report.weight}; {report.members} devices weigh {least:.0f} to "
            f"{most:.0f} where weighting={spec.aggregation.weighting}"
        )


def _check_counts(spec: TaskSpec, counts: NDArray[np.float32], members: int) -> None:
    """Refuse numbers of devices per rank that the sketches of so many devices cannot give."""
    if (counts < 0).any() or (counts > members).any() or (counts != np.floor(counts)).any():
        raise MalformedPayload(f"{MEMBERS} must hold whole numbers in 0..{members}, the devices")
    sketches = spec.policy.sketch_sizes
    drawn = counts.sum(axis=1, dtype=np.float64)
    least, most = members * min(sketches), members * max(sketches)
    if drawn.min() != drawn.max() or not least <= drawn[0] <= most:
        raise MalformedPayload(
            f"{MEMBERS} adds up to {drawn.min():.0f}..{drawn.max():.0f} ranks in a layer; "
            f"{members} devices train {least} to {most}, and in each layer the same"
        )


def _check_untrained(adapter: AdapterSpec, arrays: Arrays, counts: NDArray[np.float32]) -> None:
    for layer, row in zip(adapter.layers, counts, strict=True):
        cold = row == 0
        A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        if arrays[A][cold].any() or arrays[B][:, cold].any():
            raise MalformedPayload(
                f"the sum moves a rank of {layer.name} that none of its devices has"
            )


def _norm(spec: TaskSpec, arrays: Arrays) -> float:
    largest = _numbers(spec.adapter, max(spec.policy.sketch_sizes))
    return update_norm(arrays) * math.sqrt(_numbers(spec.adapter, spec.adapter.r) / largest)


def _numbers(adapter: AdapterSpec, k: int) -> int:
    return sum(math.prod(shape) for shape in payload.adapter_shapes(adapter, k).values())
