"""Two real servers, one the relay of the other, and ``kill -9`` around every sum it sends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.wire.messages import TaskSpec
from server.adapters import AdapterShelf
from server.combining import combine
from server.failpoints import RELAY_POINTS
from server.server_optimizers import step
from server.tasks import create_task
from tests.faults.fleet import Fleet, Member
from tests.numpy_device import enrol, wait_for
from tests.processes import ServerProcess
from tests.server.relays import counted
from tests.server.tasks import SEED, Site, tiny_spec

_QUICK = {"EDGE_SERVER_POLL_S": "0.05", "EDGE_SERVER_TICK_S": "0.05"}
_SKETCH_SIZES = (1, 4, 8)

pytestmark = pytest.mark.processes


def test_a_relay_killed_around_every_sum_has_each_device_counted_once(tmp_path):
    size = len(_SKETCH_SIZES)
    spec = tiny_spec(rounds=len(RELAY_POINTS) + 2, cohort_size=size, quorum=size)
    with ServerProcess(tmp_path / "upstream", environment=_QUICK) as upstream:
        _make_task(upstream, spec)
        token = upstream.command("token", "create", "--relay-for", str(size))["enrolment_token"]
        environment = {
            **_QUICK,
            "EDGE_SERVER_UPSTREAM": upstream.address,
            "EDGE_SERVER_UPSTREAM_TOKEN": token,
        }
        with ServerProcess(tmp_path / "relay", environment=environment) as relay:
            wait_for(lambda: relay.command("task", "list"))
            members = [
                Member(device_id, identity, k)
                for (device_id, identity), k in zip(enrol(relay, size), _SKETCH_SIZES, strict=True)
            ]
            with Fleet(spec, members).at_work([relay.address]) as work:
                for point in RELAY_POINTS:
                    relay.kill()
                    relay.start(failpoint=point)
                    wait_for(lambda: relay.has_died or work.is_over, 30)
                    assert relay.has_died, f"{point} was never met"
                relay.kill()
                relay.start()
                work.finish()
    assert work.refusals, "devices noticed"
    _check(spec, tmp_path / "upstream", tmp_path / "relay", size)


def _make_task(server: ServerProcess, spec: TaskSpec) -> None:
    site = Site(server.state)
    create_task(site.store, AdapterShelf(site.blobs), spec, SEED, 0.0)
    site.store.close()


def _check(spec: TaskSpec, upstream_folder: Path, relay_folder: Path, size: int) -> None:
    """Each round has one sum of all devices, and each version is what they make without a relay."""
    upstream, relay = Site(upstream_folder), Site(relay_folder)
    expected, state = upstream.master(spec, 0), None
    for number in range(1, spec.policy.rounds + 1):
        with upstream.store.read() as tx:
            assert tx.round(spec.name, number).state == "closed"
            assert [row.members for row in tx.updates(spec.name, number)] == [size]
        updates = counted(relay, spec.name, number, lambda _: 1.0)
        assert len(updates) == size
        expected, state = step(expected, combine(spec, updates), spec, state)
        found = upstream.master(spec, number)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6)
    last = upstream.coordinator.adapters(spec.name)[-1]
    assert relay.coordinator.adapters(spec.name)[-1].digest == last.digest
    for site in (upstream, relay):
        site.store.close()
