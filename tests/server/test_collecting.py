import os
import threading
import time

import pytest
import requests

from edge_sdk.errors import NotFound, ServerBusy
from server.blobs.blobs import BlobFolder
from server.blobs.staging import Stage
from server.operation.collecting import COLLECTING, GRACE_S, Collecting
from server.operation.collector import Collector
from tests.server.places import BucketPlace
from tests.server.tasks import Site, tiny_spec, wait_until

KEEP_S = 7 * 86_400.0
BODY = b"a blob that no row refers to"


def collecting(site, blobs=None):
    return Collecting(site.store, blobs or site.blobs, site.clock, KEEP_S)


def make_old(site, age_s=GRACE_S + 1):
    """Let every file be that old by the site's clock."""
    for name, _ in site.blobs.digests():
        os.utime(site.blobs.path(name), (site.clock.now - age_s,) * 2)


def names(blobs):
    return {name for name, _ in blobs.digests()}


def of_adapters(site):
    with site.store.read() as tx:
        rows = tx.adapters("tiny")
    return {name for row in rows for name in (row.digest, row.master_digest)}


def run_round(site, spec, number, seed=1):
    """One round of two devices; returns the digests of their updates."""
    for i, device in enumerate(("a", "b")):
        site.train(device, spec, seed=seed + i)
    with site.store.read() as tx:
        found = {row.digest for row in tx.updates("tiny", number)}
    site.advance()
    return found


@pytest.fixture
def spec(site):
    for device in ("a", "b"):
        site.add_device(device)
    return site.add_task(tiny_spec(cohort_size=2, quorum=2, wire_dtype="bf16"))


def test_what_no_row_refers_to_is_removed_when_it_is_old_enough(site, spec):
    orphan = site.blobs.put(BODY)
    make_old(site, GRACE_S - 1)
    assert collecting(site).collect() == 0
    assert orphan in names(site.blobs)
    make_old(site)
    assert collecting(site).collect() == 1
    assert names(site.blobs) == of_adapters(site)


def test_the_updates_of_a_round_that_runs_stay_however_old(site, spec):
    site.train("a", spec, seed=1)
    site.clock.now += 10 * KEEP_S
    make_old(site)
    assert collecting(site).collect() == 0


def test_the_updates_of_a_closed_round_go_after_the_set_time_and_adapters_stay(site, spec):
    updates = run_round(site, spec, 1)
    site.clock.now += KEEP_S - 1
    make_old(site)
    assert collecting(site).collect() == 0
    site.clock.now += 2
    assert collecting(site).collect() == len(updates) == 2
    assert names(site.blobs) == of_adapters(site)
    assert len(of_adapters(site)) == 4  # two versions, each in bf16 and float32


def test_a_fleet_goes_on_after_old_updates_were_removed(site, spec):
    run_round(site, spec, 1)
    site.clock.now += KEEP_S + 1
    make_old(site)
    collecting(site).collect()
    again = site.restarted()
    run_round(again, spec, 2, seed=5)
    assert again.coordinator.round_status("tiny", 2).state == "closed"
    again.store.close()


def test_bytes_that_a_running_round_has_too_stay(site, spec):
    shared = run_round(site, spec, 1, seed=1)
    site.clock.now += KEEP_S + 1
    site.train("a", spec, seed=1)
    make_old(site)
    assert collecting(site).collect() == 1
    assert len(shared & names(site.blobs)) == 1


def test_a_blob_that_is_stored_again_while_the_collector_looks_stays(site, spec):
    class Busy(BlobFolder):
        """Somebody stores the same bytes just before they would be removed."""

        def remove(self, digest, changed_before):
            self.put(BODY)
            return super().remove(digest, changed_before)

    orphan = site.blobs.put(BODY)
    make_old(site)
    assert collecting(site, Busy(site.settings.blob_folder)).collect() == 0
    assert site.blobs.read(orphan) == BODY


def test_only_one_replica_collects_at_a_time(site, spec):
    site.blobs.put(BODY)
    make_old(site)
    with site.store.exclusive(COLLECTING) as is_alone:
        assert is_alone
        assert collecting(site).collect() == 0
    assert collecting(site).collect() == 1


def test_collecting_ends_early_when_the_server_stops(site, spec):
    site.blobs.put(BODY)
    make_old(site)
    assert collecting(site).collect(is_stopping=lambda: True) == 0


def test_partial_files_of_killed_processes_are_cleared_away(site, spec):
    with site.blobs.upload() as upload:
        os.utime(upload.path, (time.time() - 7200,) * 2)
        collecting(site).collect()
        assert not upload.path.exists()


def test_a_bucket_is_collected_like_a_folder(tmp_path, s3):
    class BucketSite(Site):
        def __init__(self, folder):
            super().__init__(folder)
            self.use(BucketPlace(s3, folder / "uploads").blobs)

    site = BucketSite(tmp_path / "state")
    for device in ("a", "b"):
        site.add_device(device)
    spec = site.add_task(tiny_spec(cohort_size=2, quorum=2))
    site.clock.now = time.time()
    updates = run_round(site, spec, 1)
    orphan = site.blobs.put(BODY)
    site.clock.now += GRACE_S + 60
    assert collecting(site).collect() == 1
    assert names(site.blobs) == of_adapters(site) | updates
    assert orphan not in names(site.blobs)
    site.clock.now += KEEP_S
    assert collecting(site).collect() == 2
    assert names(site.blobs) == of_adapters(site)
    site.store.close()


def test_what_devices_staged_and_nobody_fetched_is_removed_and_blobs_are_not(tmp_path, s3):
    blobs = BucketPlace(s3, tmp_path).blobs
    stages = [Stage(device_id="d", task="tiny", number=number) for number in (1, 2)]
    for stage in stages:
        assert requests.put(blobs.staging.sign(stage), data=BODY, timeout=10).ok
    kept = blobs.put(BODY)
    assert names(blobs) == {kept}, "what is staged is no blob"
    blobs.remove_leftovers(60.0)
    assert b"".join(blobs.staging.fetch(stages[0], len(BODY), len(BODY))) == BODY
    blobs.remove_leftovers(-60.0)  # as if a minute had passed since they came
    for stage in stages:
        with pytest.raises(NotFound):
            list(blobs.staging.fetch(stage, len(BODY), len(BODY)))
    assert blobs.read(kept) == BODY


def test_the_thread_goes_on_after_a_failure_and_ends_when_told(caplog):
    looks = []

    class Failing:
        def collect(self, is_stopping):
            looks.append(is_stopping())
            raise ServerBusy("the object store cannot be reached now")

    collector = Collector(Failing(), every_s=0.01)
    collector.start()
    wait_until(lambda: len(looks) >= 3)
    collector.stop()
    assert looks[:3] == [False] * 3
    assert "cannot be collected now" in caplog.text
    assert not any(thread.name == "collector" for thread in threading.enumerate())
