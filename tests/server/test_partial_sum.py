"""A sum on its way upstream: what is made is what is read, and what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.errors import MalformedMessage, MalformedPayload, NotFinite
from edge_sdk.wire import payload
from edge_sdk.wire.messages import encode_message
from server.aggregation.weighted_mean import RunningSum
from server.rounds.partial_sum import (
    MEMBERS,
    SumReport,
    check_sum,
    encode_sum,
    read_members,
    read_sum,
    sum_limit,
)
from server.rules.screening import update_norm
from tests.server.store_rows import UPDATE
from tests.server.tasks import tiny_spec
from tests.server.updates import ADAPTER, an_update

SPEC = tiny_spec(sketch_sizes=[1, 2, 4])
LAYER = ADAPTER.layers[0].name


def a_sum(members: int = 3, weight: float = 1.0) -> tuple[bytes, RunningSum]:
    """An honest sum as it travels, and the same as it was added up."""
    updates = [an_update(seed, (1, 2, 4)[seed % 3], weight) for seed in range(members)]
    travels, kept = RunningSum(ADAPTER), RunningSum(ADAPTER)
    for update in updates:
        travels.add(update)
        kept.add(update)
    return encode_sum(ADAPTER, travels, [UPDATE] * members), kept


def forged(members: int = 3, report: dict | None = None, **arrays) -> bytes:
    """An honest sum in which some tensors or facts are others; functions change a copy."""
    body, _ = a_sum(members)
    shapes = payload.adapter_shapes(ADAPTER, ADAPTER.r)
    shapes |= {MEMBERS: (len(ADAPTER.layers), ADAPTER.r)}
    tensors, _ = payload.decode(body, shapes)
    for name, change in arrays.items():
        key = {"counts": MEMBERS, "A": f"{LAYER}.lora_A", "B": f"{LAYER}.lora_B"}[name]
        tensors[key] = change(tensors[key].copy())
    facts = {"examples": 9, "loss": 0.1, "seconds": 0.2, "peak_rss_bytes": 1}
    facts |= {"members": members, "weight": float(members)} | (report or {})
    return payload.encode(tensors, "fp32", encode_message(SumReport(**facts)))


@pytest.mark.parametrize("wire_dtype", ["fp32", "bf16"])
def test_what_is_read_at_the_other_end_is_the_sum_that_was_made(wire_dtype):
    body, kept = a_sum()
    found = check_sum(tiny_spec(wire_dtype=wire_dtype), body, most_members=3)
    assert (found.report.members, found.report.weight) == (3, 3.0)
    assert len(body) <= sum_limit(ADAPTER)
    other = RunningSum(ADAPTER)
    other.add(read_sum(ADAPTER, body, found.rank_members, found.report.weight))
    np.testing.assert_array_equal(other.members(), kept.members())
    np.testing.assert_array_equal(read_members(ADAPTER, found.rank_members), kept.members())
    made, expected = other.finish(), kept.finish()
    for name, array in expected.arrays.items():
        np.testing.assert_allclose(made.arrays[name], array, rtol=1e-6, atol=1e-9)
    for name, touched in expected.touched.items():
        np.testing.assert_array_equal(made.touched[name], touched)


def test_sums_that_were_sent_add_up_like_the_updates_themselves():
    (one, first), (other, second) = a_sum(3), a_sum(2, weight=1.0)
    sent, kept = RunningSum(ADAPTER), first
    for body in (one, other):
        found = check_sum(SPEC, body, 3)
        sent.add(read_sum(ADAPTER, body, found.rank_members, found.report.weight))
    kept.merge(second)
    assert sent.total_weight == kept.total_weight == 5
    np.testing.assert_array_equal(sent.members(), kept.members())
    expected = kept.finish().arrays
    for name, array in sent.finish().arrays.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-9)


def test_a_sum_says_what_its_devices_reported_together():
    body, _ = a_sum(3)
    report = check_sum(SPEC, body, 3).report
    assert report.loss == pytest.approx(UPDATE.loss)
    assert (report.seconds, report.peak_rss_bytes) == (UPDATE.seconds, UPDATE.peak_rss_bytes)
    assert report.examples == 2**53, "more than JSON numbers hold"


def test_a_sum_of_more_devices_than_the_relay_has_places_for_is_refused():
    assert check_sum(SPEC, a_sum(3)[0], 3).report.members == 3
    with pytest.raises(MalformedPayload, match="of 3 devices, this relay has places for 2"):
        check_sum(SPEC, a_sum(3)[0], 2)
    with pytest.raises(MalformedPayload, match="of 1000000 devices"):
        check_sum(SPEC, forged(report={"members": 10**6, "weight": 1e6}), 3)


@pytest.mark.parametrize("members", [0, -1])
def test_a_sum_of_nobody_is_refused(members):
    with pytest.raises(MalformedPayload, match="devices, this relay"):
        check_sum(SPEC, forged(report={"members": members}), 3)


@pytest.mark.parametrize(
    ("weighting", "least", "most"),
    [("uniform", 3, 3), ("inverse_probability", 3, 30), ("examples", 3, 3 * 2**53)],
)
def test_a_sum_weighs_no_more_than_its_devices_could(weighting, least, most):
    spec = tiny_spec(weighting=weighting, sketch_sizes=[1, 2, 4])
    for weight in (least, most):
        check_sum(spec, forged(report={"weight": float(weight)}), 3)
    for weight in (0.999 * least, 1.001 * most, -1.0, 0.0):
        with pytest.raises(MalformedPayload, match=f"weighting={weighting}"):
            check_sum(spec, forged(report={"weight": weight}), 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda counts: counts + 0.5,
        lambda counts: -counts,
        lambda counts: counts * 0 + 4,  # more devices on a rank than there are
        lambda counts: counts * 0 + 3,  # as if every device trained more than the largest sketch
        lambda counts: np.eye(*counts.shape, dtype=np.float32),  # less than the smallest ones
        lambda counts: np.concatenate([counts[:1] * 0 + 1, counts[1:]]),  # layers that differ
    ],
)
def test_devices_per_rank_that_no_sketches_give_are_refused(change):
    with pytest.raises(MalformedPayload, match=MEMBERS):
        check_sum(SPEC, forged(counts=change), 3)


@pytest.mark.parametrize("tensor", ["A", "B"])
def test_a_sum_that_moves_a_rank_none_of_its_devices_has_is_refused(tensor):
    body, kept = a_sum(1)
    cold = int(np.flatnonzero(kept.members()[0] == 0)[0])
    del body

    def move(array):
        array[(cold, 0) if tensor == "A" else (0, cold)] = 1e-3
        return array

    with pytest.raises(MalformedPayload, match=f"a rank of {LAYER}"):
        check_sum(SPEC, forged(1, **{tensor: move}), 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e31])
def test_a_sum_beyond_the_finite_numbers_is_refused(value):
    with pytest.raises(NotFinite):
        check_sum(SPEC, forged(A=lambda array: np.where(array != 0, value, array)), 3)


def test_the_update_of_one_device_is_no_sum():
    update = an_update(1, 4)
    with pytest.raises(MalformedPayload):
        check_sum(SPEC, payload.encode(update.arrays), 3)
    body = forged().replace(rb"\"members\":3", rb"\"devices\":3")
    with pytest.raises(MalformedMessage):
        check_sum(SPEC, body, 3)


def test_the_norm_of_a_sum_is_never_above_the_largest_of_its_devices():
    """So that a bound for single devices holds for what they are together."""
    for scale in (0.1, 10.0):
        for seeds in ((1,), (1, 2, 3), tuple(range(9))):
            updates = [an_update(seed, (1, 2, 4)[seed % 3], scale=scale) for seed in seeds]
            total = RunningSum(ADAPTER)
            for update in updates:
                total.add(update)
            found = check_sum(SPEC, encode_sum(ADAPTER, total, [UPDATE] * len(seeds)), 9)
            assert found.norm <= max(update_norm(update.arrays) for update in updates) * (1 + 1e-6)


def test_a_forged_sum_has_the_norm_that_a_device_with_the_largest_sketch_would_have():
    quiet, loud = check_sum(SPEC, forged(), 3), check_sum(SPEC, forged(A=lambda x: 100 * x), 3)
    assert loud.norm > 20 * quiet.norm
