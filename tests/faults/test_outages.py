"""What a server stands on goes away and comes back: errors meanwhile, no corruption, no help.

Outages of ten seconds are shorter here, or last until a device was told: nothing counts them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from sqlalchemy import make_url

from edge_sdk.errors import ServerBusy, StorageError
from tests.faults.fleet import FleetAtWork, make_fleet
from tests.faults.outages import CrashingDatabase, Gate, no_room_for, standing_still
from tests.faults.storages import Installation, embedded, shared
from tests.numpy_device import NumpyDevice, wait_for
from tests.server.tasks import Site, tiny_spec
from tests.services import S3, postgres_server

OUTAGE_S = 2.0
FLEET = 4
SPEC = tiny_spec(dense=False, rounds=6, cohort_size=FLEET, quorum=FLEET)

pytestmark = pytest.mark.processes


def test_a_database_that_crashes_and_comes_back_loses_nothing(tmp_path: Path, s3: S3):
    with (
        postgres_server() as postgres,
        CrashingDatabase(postgres) as database,
        shared(tmp_path, postgres, s3) as found,
        found.server() as server,
    ):
        fleet = make_fleet(server, found.settings(), SPEC, FLEET)
        with fleet.at_work([server.address]) as work:
            wait_for(lambda: work.closed_rounds)
            database.crash()
            _let_devices_notice(work, server.address)
            time.sleep(OUTAGE_S)
            database.start()
            work.finish()
        assert {type(error) for error in work.refusals} == {ServerBusy}
        fleet.check(found.settings(), tmp_path / "expected")


def test_a_database_that_stands_still_is_waited_for(
    replicas: Installation,
    tmp_path: Path,
    postgres: str,
):
    with replicas.server() as server:
        fleet = make_fleet(server, replicas.settings(), SPEC, FLEET)
        with fleet.at_work([server.address]) as work:
            wait_for(lambda: work.closed_rounds)
            with standing_still(CrashingDatabase(postgres).processes):
                assert requests.get(f"{server.address}/healthz", timeout=5).ok
                time.sleep(OUTAGE_S)
            work.finish()
        fleet.check(replicas.settings(), tmp_path / "expected")


def test_an_object_store_that_is_gone_for_a_while_loses_nothing(
    replicas: Installation,
    tmp_path: Path,
):
    door = Gate(make_url(replicas.environment["EDGE_SERVER_BLOB_ENDPOINT"]).port)
    behind = {"EDGE_SERVER_BLOB_ENDPOINT": f"http://127.0.0.1:{door.port}"}
    found = replace(replicas, environment={**replicas.environment, **behind})
    with door.in_place(), found.server() as server:
        fleet = make_fleet(server, found.settings(), SPEC, FLEET)
        with fleet.at_work([server.address]) as work:
            wait_for(lambda: work.closed_rounds)
            with door.shut():
                _let_devices_notice(work, server.address)
            work.finish()
        assert {type(error) for error in work.refusals} <= {StorageError, ServerBusy}
        fleet.check(found.settings(), tmp_path / "expected")


def test_a_full_disk_is_an_error_to_the_device_until_there_is_room(tmp_path: Path):
    """No file of the server may be written: neither tensors nor pages of the database."""
    found = embedded(tmp_path)
    with found.server() as server:
        fleet = make_fleet(server, found.settings(), SPEC, FLEET)
        with fleet.at_work([server.address]) as work:
            wait_for(lambda: work.closed_rounds)
            with no_room_for(server.pid):
                _let_devices_notice(work, server.address)
            work.finish()
        assert {type(error) for error in work.refusals} == {StorageError}
        fleet.check(found.settings(), tmp_path / "expected")


def test_a_torn_blob_is_an_error_until_it_is_restored(tmp_path: Path):
    """Half of the adapter that a round starts from is missing; the round waits for it."""
    spec = tiny_spec(dense=False, rounds=1, cohort_size=1, quorum=1)
    found = embedded(tmp_path)
    with found.server() as server:
        fleet = make_fleet(server, found.settings(), spec, 1)
        (member,) = fleet.members
        device = NumpyDevice(server.address, member.identity, spec.name, member.k)
        work = device.wait_for_work()
        (blob,) = (path for path in found.settings().blob_folder.glob("??/*") if path.is_file())
        whole = blob.read_bytes()
        blob.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(StorageError):
            device.fetch(work)
        assert device.check_in().assignment is not None
        blob.write_bytes(whole)
        device.submit(work, device.made_up_update(work, device.fetch(work)))
        device.wait_for_version(1)
    fleet.check(found.settings(), tmp_path / "expected")


@pytest.mark.parametrize("jump_s", [-1e9, -3600.0, 3600.0, 1e9])
def test_a_clock_that_jumps_loses_no_update_and_the_task_goes_on(tmp_path, jump_s):
    site = Site(tmp_path)
    spec = site.add_task(tiny_spec(rounds=2, cohort_size=3, quorum=3, deadline_s=100.0))
    for name in "abc":
        site.add_device(name)
    site.clock.now = 2e9
    site.train("a", spec, seed=1)
    site.clock.now += jump_s
    site.advance()
    site.clock.now += 100.0
    site.advance()
    status = site.coordinator.round_status("tiny", 1)
    assert (status.state, status.accepted) == ("closed", 1)
    for name in "abc":
        assert site.train(name, spec, seed=2).round_number == 2
    site.advance()
    assert site.coordinator.round_status("tiny", 2).state == "closed"
    site.store.close()


def _let_devices_notice(work: FleetAtWork, address: str) -> None:
    """Wait until a device was refused, while the process itself is well."""
    wait_for(lambda: work.refusals, 60)
    assert requests.get(f"{address}/healthz", timeout=5).ok
