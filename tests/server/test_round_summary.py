"""What one round adds up to, compared with what was really sent."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

import pytest

from edge_sdk.wire import payload
from server.operation.round_summary import MOST_LEFT_OUT, summarize_round
from server.storage.store import UpdateRow
from tests.server.tasks import random_arrays, ready, tiny_spec

GB = 10**9


@pytest.fixture
def spec(site):
    for i in range(30):
        site.add_device(f"d{i:02}")
    return site.add_task(tiny_spec(cohort_size=30, quorum=30))


def summary(site, spec, number=1):
    with site.store.read() as tx:
        full = tx.adapters(spec.name)[0].size_bytes
        return summarize_round(tx, tx.round(spec.name, number), full)


def change(site, row, **changes):
    """Replace an accepted update by a changed one, as another device would have sent it."""
    from server.storage import tables

    table = tables.updates
    with site.store.write() as tx:
        tx._connection.execute(
            table.update().where(table.c.device_id == row.device_id).values(**changes)
        )


def accepted(site, spec, device, number=1) -> UpdateRow:
    with site.store.read() as tx:
        return tx.accepted(spec.name, number, device)


def test_the_loss_is_the_mean_by_examples_with_its_range(site, spec):
    site.train("d00", spec, 1, examples=1, loss=5.0)
    site.train("d01", spec, 2, examples=3, loss=1.0)
    found = summary(site, spec)
    assert found.loss == pytest.approx((1 * 5.0 + 3 * 1.0) / 4)
    assert (found.lowest_loss, found.highest_loss) == (1.0, 5.0)


def test_a_round_without_updates_has_no_loss(site, spec):
    site.coordinator.check_in("d00", spec.name, ready())
    found = summary(site, spec)
    assert (found.loss, found.lowest_loss, found.assigned, found.missing) == (None, None, 1, 1)


def test_losses_at_the_edge_of_the_numbers_stay_json(site, spec):
    for i in range(7):
        site.train(f"d{i:02}", spec, i, examples=i + 1, loss=sys.float_info.max)
    assert summary(site, spec).loss == sys.float_info.max
    json.dumps(asdict(summary(site, spec)), allow_nan=False)


def test_bytes_are_those_that_travelled_beside_the_body_at_rank_r(site, spec):
    """Full rank is what a body at rank r really has, encoded here anew."""
    for i, k in enumerate((1, 4)):
        site.train(f"d{i:02}", spec, i, affordable_k=k)
    slices = [site.coordinator.slice_for(f"d{i:02}", spec.name, 1) for i in range(2)]
    found = summary(site, spec)
    full = len(payload.encode(random_arrays(spec.adapter, spec.adapter.r, 0), "fp32"))
    assert found.download_bytes == sum(map(len, slices))
    assert found.full_download_bytes == found.full_upload_bytes == 2 * full
    sent = [accepted(site, spec, f"d{i:02}").size_bytes for i in range(2)]
    assert found.upload_bytes == sum(sent) < 2 * full


def test_a_device_that_fetched_nothing_would_have_fetched_nothing_at_full_rank(site, spec):
    site.train("d00", spec, 1)
    assert summary(site, spec).full_download_bytes == 0


def test_devices_are_counted_by_k(site, spec):
    for i, k in enumerate((1, 4, 4)):
        site.train(f"d{i:02}", spec, i, affordable_k=k)
    site.coordinator.check_in("d03", spec.name, ready(4))
    change(site, accepted(site, spec, "d01"), seconds=9.0, peak_rss_bytes=5)
    found = summary(site, spec)
    assert [(x.k, x.devices, x.updates) for x in found.by_k] == [(1, 1, 1), (4, 3, 2)]
    assert [(x.seconds, x.peak_rss_bytes) for x in found.by_k] == [(0.25, 1 << 20)] * 2
    assert found.by_k[1].upload_bytes == accepted(site, spec, "d02").size_bytes


def test_devices_are_counted_by_memory_without_empty_ranges_at_the_ends(site, spec):
    for i, peak in enumerate((GB, 4 * GB - 1, 4 * GB)):
        site.train(f"d{i:02}", spec, i)
        change(site, accepted(site, spec, f"d{i:02}"), peak_rss_bytes=peak)
    found = [(x.from_bytes, x.below_bytes, x.devices) for x in summary(site, spec).by_memory]
    assert found == [(GB, 2 * GB, 1), (2 * GB, 4 * GB, 1), (4 * GB, 8 * GB, 1)]


def test_memory_beyond_every_range_is_counted(site, spec):
    site.train("d00", spec, 1)
    change(site, accepted(site, spec, "d00"), peak_rss_bytes=2**53)
    (found,) = summary(site, spec).by_memory
    assert (found.from_bytes, found.below_bytes, found.devices) == (16 * GB, None, 1)


def test_a_quarantined_update_is_named_with_its_reason_and_is_in_no_mean(site, spec):
    site.train("d00", spec, 1, loss=1.0)
    site.train("d01", spec, 2, loss=99.0)
    with site.store.write() as tx:
        tx.quarantine(tx.accepted(spec.name, 1, "d01"), "norm 7 is above 4")
    found = summary(site, spec)
    assert (found.accepted, found.quarantined, found.missing, found.loss) == (1, 1, 0, 1.0)
    (line,) = found.left_out
    assert (line.kind, line.device_name, line.reason) == ("quarantined", "d01", "norm 7 is above 4")


def test_a_late_update_counts_in_the_round_it_came_into_and_is_missing_in_its_own(site, spec):
    for device in ("d00", "d01"):
        site.train(device, spec, 1)
    late = accepted(site, spec, "d01")
    with site.store.write() as tx:
        tx.add_round(replace(tx.round(spec.name, 1), number=2))
    change(site, late, counted_in=2, staleness=1, loss=3.0)
    first, second = summary(site, spec, 1), summary(site, spec, 2)
    assert (first.accepted, first.late, first.missing) == (1, 0, 1)
    assert (second.accepted, second.late, second.missing, second.loss) == (1, 1, 0, 3.0)
    (line,) = second.left_out
    assert (line.kind, line.round_number, line.counted_in, line.staleness) == ("late", 1, 2, 1)


def test_only_the_newest_left_out_updates_are_named(site, spec):
    for i in range(MOST_LEFT_OUT + 2):
        site.clock.now += 1
        site.train(f"d{i:02}", spec, i)
        with site.store.write() as tx:
            tx.quarantine(tx.accepted(spec.name, 1, f"d{i:02}"), "odd")
    found = summary(site, spec)
    assert found.quarantined == MOST_LEFT_OUT + 2
    assert [x.device_id for x in found.left_out][:2] == ["d21", "d20"]
    assert len(found.left_out) == MOST_LEFT_OUT
