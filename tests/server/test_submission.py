from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.errors import (
    DigestMismatch,
    MalformedMessage,
    MalformedPayload,
    NotAssigned,
    NotFinite,
    NotFound,
    ProtocolMismatch,
    RoundClosed,
    StorageError,
    UpdateConflict,
)
from edge_sdk.wire import payload
from edge_sdk.wire.messages import UpdateReport, encode_message
from tests.server.tasks import in_parallel, random_arrays, ready, tiny_spec, update_body
from tests.server.test_blobs import disk_refuses_files_beyond

K = 4
REPORT = UpdateReport(examples=5, loss=1.0, seconds=0.1, peak_rss_bytes=1)


@pytest.fixture
def spec(site):
    """A task whose round 1 is open, with work at k=4 for device a."""
    for name in "abc":
        site.add_device(name)
    spec = site.add_task(tiny_spec(cohort_size=3, quorum=2, deadline_s=100.0))
    site.coordinator.check_in("a", "tiny", ready(K))
    return spec


def state_of(site):
    """Everything that a refused update must leave as it was."""
    files = sorted(path for path in Path(site.settings.blob_folder).rglob("*") if path.is_file())
    return files, site.coordinator.round_status("tiny", 1)


def test_an_update_is_durable_before_its_receipt(site, spec):
    body = update_body(spec, K, seed=1, examples=9, loss=2.5)
    receipt = site.submit("a", "tiny", 1, body)
    assert (receipt.task, receipt.round_number) == ("tiny", 1)
    assert receipt.digest == payload.digest(body)
    again = site.restarted()
    assert again.blobs.read(receipt.digest) == body
    with again.store.read() as tx:
        row = tx.accepted("tiny", 1, "a")
    assert (row.digest, row.size_bytes, row.examples, row.loss) == (
        receipt.digest,
        len(body),
        9,
        2.5,
    )
    again.store.close()


def test_the_same_bytes_again_get_the_same_receipt_and_count_once(site, spec):
    body = update_body(spec, K, seed=1)
    first = site.submit("a", "tiny", 1, body)
    before = state_of(site)
    assert site.submit("a", "tiny", 1, body) == first
    assert state_of(site) == before


def test_the_same_bytes_get_their_receipt_also_after_the_round_is_closed(site, spec):
    body = update_body(spec, K, seed=1)
    first = site.submit("a", "tiny", 1, body)
    site.train("b", spec, seed=2)
    site.advance()
    assert site.coordinator.round_status("tiny", 1).state == "closed"
    assert site.coordinator.expect_update("a", "tiny", 1) >= len(body)
    assert site.submit("a", "tiny", 1, body) == first


def test_other_bytes_conflict_whether_the_round_is_open_or_closed(site, spec):
    first = update_body(spec, K, seed=1)
    site.submit("a", "tiny", 1, first)
    for _ in range(2):
        before = state_of(site)
        with pytest.raises(UpdateConflict, match=payload.digest(first)[:12]):
            site.submit("a", "tiny", 1, update_body(spec, K, seed=9))
        assert state_of(site) == before
        site.clock.now += 100
        site.advance()


@pytest.mark.parametrize("is_looked_at", [True, False])
def test_a_late_update_is_refused_also_if_nobody_has_looked_at_the_round(site, spec, is_looked_at):
    site.train("b", spec, seed=2)
    site.clock.now += 100
    if is_looked_at:
        site.advance()
    for ask in (
        lambda: site.submit("a", "tiny", 1, update_body(spec, K, seed=1)),
        lambda: site.coordinator.expect_update("a", "tiny", 1),
    ):
        with pytest.raises(RoundClosed, match="round 1"):
            ask()


def test_the_quorum_is_exact(site, spec):
    """The update that completes the quorum freezes the round in the same transaction."""
    site.coordinator.check_in("c", "tiny", ready(K))
    site.submit("a", "tiny", 1, update_body(spec, K, seed=1))
    site.train("b", spec, seed=2)
    assert site.coordinator.round_status("tiny", 1).state == "closing"
    with pytest.raises(RoundClosed):
        site.submit("c", "tiny", 1, update_body(spec, K, seed=3))


def body_with(spec, *, k=K, report: object = REPORT, dtype="fp32", change=None):
    arrays = random_arrays(spec.adapter, k, seed=1)
    if change is not None:
        change(arrays)
    return payload.encode(arrays, dtype, encode_message(report))


def drop_one(arrays):
    arrays.pop("score.bias")


def add_one(arrays):
    arrays["extra"] = np.zeros(1, np.float32)


def put(value):
    def change(arrays):
        arrays["score.bias"][0] = value

    return change


BAD_BODIES = {
    "empty": (lambda spec: b"", MalformedPayload),
    "noise": (lambda spec: b"\x80\x04noise" * 50, MalformedPayload),
    "cut short": (lambda spec: body_with(spec)[:-1], MalformedPayload),
    "other k": (lambda spec: body_with(spec, k=K * 2), MalformedPayload),
    "other numbers": (lambda spec: body_with(spec, dtype="bf16"), MalformedPayload),
    "a tensor less": (lambda spec: body_with(spec, change=drop_one), MalformedPayload),
    "a tensor more": (lambda spec: body_with(spec, change=add_one), MalformedPayload),
    "NaN": (lambda spec: body_with(spec, change=put(np.nan)), NotFinite),
    "infinity": (lambda spec: body_with(spec, change=put(-np.inf)), NotFinite),
    "huge": (lambda spec: body_with(spec, change=put(1e38)), NotFinite),
    "no report": (
        lambda spec: payload.encode(random_arrays(spec.adapter, K, 1)),
        MalformedMessage,
    ),
    "half a report": (lambda spec: body_with(spec, report={"examples": 1}), MalformedMessage),
    "no examples": (
        lambda spec: body_with(spec, report={**asdict(REPORT), "examples": 0}),
        MalformedMessage,
    ),
    "uncountable examples": (
        lambda spec: body_with(spec, report={**asdict(REPORT), "examples": 2**53 + 1}),
        MalformedMessage,
    ),
    "negative memory": (
        lambda spec: body_with(spec, report={**asdict(REPORT), "peak_rss_bytes": -1}),
        MalformedMessage,
    ),
    "negative time": (
        lambda spec: body_with(spec, report={**asdict(REPORT), "seconds": -1.0}),
        MalformedMessage,
    ),
    "other protocol": (
        lambda spec: body_with(spec, report=replace(REPORT, protocol=2)),
        ProtocolMismatch,
    ),
}


@pytest.mark.parametrize("what", BAD_BODIES)
def test_a_bad_update_is_refused_by_its_own_error_and_changes_nothing(site, spec, what):
    make, error = BAD_BODIES[what]
    before = state_of(site)
    with pytest.raises(error) as caught:
        site.submit("a", "tiny", 1, make(spec))
    assert type(caught.value) is error
    assert state_of(site) == before
    site.submit("a", "tiny", 1, update_body(spec, K, seed=1))


@pytest.mark.parametrize("header", [None, "", "sha-256=:AAAA:", "md5=:AAAA:"])
def test_an_update_without_its_digest_is_refused_and_changes_nothing(site, spec, header):
    before = state_of(site)
    with site.coordinator.open_upload() as upload:
        upload.write(update_body(spec, K, seed=1))
        with pytest.raises(DigestMismatch):
            site.coordinator.accept_update("a", "tiny", 1, upload, header)
    assert state_of(site) == before


def test_an_update_for_no_work_or_no_round_changes_nothing(site, spec):
    before = state_of(site)
    body = update_body(spec, K, seed=1)
    with pytest.raises(NotAssigned):
        site.submit("b", "tiny", 1, body)
    with pytest.raises(NotFound):
        site.submit("a", "tiny", 2, body)
    with pytest.raises(NotFound):
        site.submit("a", "none", 1, body)
    assert state_of(site) == before


def test_a_full_disk_refuses_the_update_and_it_can_be_sent_again(site, spec):
    body = update_body(spec, K, seed=1)
    with pytest.raises(StorageError), disk_refuses_files_beyond(100):
        site.submit("a", "tiny", 1, body)
    assert site.coordinator.round_status("tiny", 1).accepted == 0
    site.submit("a", "tiny", 1, body)
    assert site.coordinator.round_status("tiny", 1).accepted == 1


def test_the_same_update_from_many_threads_counts_once(site, spec):
    body = update_body(spec, K, seed=1)
    results = in_parallel([lambda: site.submit("a", "tiny", 1, body)] * 6)
    assert len(set(results)) == 1
    assert results[0].digest == payload.digest(body)
    with site.store.read() as tx:
        assert len(tx.updates("tiny", 1)) == 1


def test_of_two_different_updates_at_once_one_is_accepted_and_one_conflicts(site, spec):
    bodies = [update_body(spec, K, seed) for seed in (1, 2)]
    results = in_parallel([lambda b=b: site.submit("a", "tiny", 1, b) for b in bodies])
    assert sorted(type(result).__name__ for result in results) == ["Receipt", "UpdateConflict"]
    with site.store.read() as tx:
        assert len(tx.updates("tiny", 1)) == 1


def test_more_devices_than_the_quorum_at_once_never_overfill_the_round(site, spec):
    for device in "bc":
        site.coordinator.check_in(device, "tiny", ready(K))
    calls = [
        lambda d=d: site.submit(d, "tiny", 1, update_body(spec, K, seed=ord(d))) for d in "abc"
    ]
    names = sorted(type(result).__name__ for result in in_parallel(calls))
    assert names == ["Receipt", "Receipt", "RoundClosed"]
    assert site.coordinator.round_status("tiny", 1).accepted == spec.policy.quorum


def test_the_limit_fits_the_update_of_the_assigned_size_and_not_one_far_larger(site, spec):
    limit = site.coordinator.expect_update("a", "tiny", 1)
    assert len(update_body(spec, K, seed=1)) <= limit < len(update_body(spec, K, seed=1)) + 2**17


def assigned_k(site, device="a"):
    with site.store.read() as tx:
        return tx.assignment("tiny", 1, device).k


def test_an_update_of_the_size_before_is_refused_and_the_right_one_still_taken(site, spec):
    site.coordinator.check_in("a", "tiny", ready(2))
    before = state_of(site)
    with pytest.raises(MalformedPayload, match=r"k=2 in round 1.*fetch the slice again"):
        site.submit("a", "tiny", 1, update_body(spec, K, seed=1))
    assert state_of(site) == before
    site.submit("a", "tiny", 1, update_body(spec, 2, seed=1))
    assert site.coordinator.round_status("tiny", 1).accepted == 1


def test_the_limit_follows_the_smaller_size(site, spec):
    before = site.coordinator.expect_update("a", "tiny", 1)
    site.coordinator.check_in("a", "tiny", ready(2))
    shapes = [payload.adapter_shapes(spec.adapter, k).values() for k in (K, 2)]
    saved = [sum(4 * np.prod(shape) for shape in sizes) for sizes in shapes]
    of_ranks = 8 * len(spec.adapter.layers) * (K - 2)  # which a slice may name
    expected = saved[0] - saved[1] + of_ranks
    assert before - site.coordinator.expect_update("a", "tiny", 1) == expected > 0


def test_a_body_that_arrives_while_its_device_steps_down_is_judged_by_the_smaller_size(site, spec):
    body = update_body(spec, K, seed=1)
    assert site.coordinator.expect_update("a", "tiny", 1) >= len(body)
    site.coordinator.check_in("a", "tiny", ready(1))
    with pytest.raises(MalformedPayload, match="k=1 in round 1"):
        site.submit("a", "tiny", 1, body)
    site.submit("a", "tiny", 1, update_body(spec, 1, seed=1))


def test_a_size_that_changes_after_the_body_was_checked_is_not_recorded(site, spec, monkeypatch):
    """Exactly between the check of the shapes and the transaction that counts the update."""
    keep = site.blobs.keep

    def step_down_and_keep(upload, digest):
        assert site.coordinator.check_in("a", "tiny", ready(2)).assignment.k == 2
        keep(upload, digest)

    with monkeypatch.context() as patch:
        patch.setattr(site.blobs, "keep", step_down_and_keep)
        with pytest.raises(MalformedPayload, match=r"has k=4.*stepped down to k=2"):
            site.submit("a", "tiny", 1, update_body(spec, K, seed=1))
    assert site.coordinator.round_status("tiny", 1).accepted == 0
    again = site.restarted()
    again.submit("a", "tiny", 1, update_body(spec, 2, seed=1))
    again.train("b", spec, seed=2)
    again.advance()
    assert again.coordinator.round_status("tiny", 1).state == "closed"
    again.store.close()


def test_an_update_and_a_step_down_at_once_agree_on_the_size_that_counts(site):
    """Whoever comes first wins, and what is stored always has the size that is stored."""
    spec = site.add_task(tiny_spec(cohort_size=12, quorum=12))
    body = update_body(spec, K, seed=1)
    for i in range(12):
        device = site.add_device(f"d{i}")
        site.coordinator.check_in(device, "tiny", ready(K))
        update, reply = in_parallel(
            [
                lambda d=device: site.submit(d, "tiny", 1, body),
                lambda d=device: site.coordinator.check_in(d, "tiny", ready(2)),
            ]
        )
        if isinstance(update, MalformedPayload):
            assert reply.assignment.k == assigned_k(site, device) == 2
            site.submit(device, "tiny", 1, update_body(spec, 2, seed=1))
        else:
            assert update.digest == payload.digest(body)
            assert (reply.state, assigned_k(site, device)) == ("wait", K)
    site.advance()
    assert site.coordinator.round_status("tiny", 1).state == "closed"
