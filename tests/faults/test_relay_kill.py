"""Two real servers, one the relay of the other, and ``kill -9`` around every sum it sends."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.network.transport import Transport
from edge_sdk.wire.task import TaskSpec
from server.access.auth import make_enrolment_token
from server.aggregation.combining import combine
from server.aggregation.server_optimizers import step
from server.failpoints import RELAY_POINTS
from tests.faults.fleet import Fleet, Member
from tests.numpy_device import enrol_one, wait_for
from tests.processes import ServerProcess
from tests.server.relays import counted
from tests.server.tasks import Site, tiny_spec

_QUICK = {
    "EDGE_SERVER_POLL_S": "0.05",
    "EDGE_SERVER_TICK_S": "0.05",
    "EDGE_SERVER_LOG_LEVEL": "error",
}
_SKETCH_SIZES = (1, 4, 8)

pytestmark = pytest.mark.processes


def test_a_relay_killed_around_every_sum_has_each_device_counted_once(tmp_path):
    size = len(_SKETCH_SIZES)
    spec = tiny_spec(rounds=len(RELAY_POINTS) + 1, cohort_size=size, quorum=size)
    of_upstream = _prepare(tmp_path / "upstream", spec, relay_for=size)
    of_relay = _prepare(tmp_path / "relay")
    with ServerProcess(tmp_path / "upstream", environment=_QUICK) as upstream, ExitStack() as ends:
        environment = {
            **_QUICK,
            "EDGE_SERVER_UPSTREAM": upstream.address,
            "EDGE_SERVER_UPSTREAM_TOKEN": of_upstream,
        }
        relay = ServerProcess(tmp_path / "relay", environment=environment)
        relay.start(failpoint=RELAY_POINTS[0])
        ends.push(relay)
        members = [_enrol(relay, of_relay, k) for k in _SKETCH_SIZES]
        known = Transport(relay.address, members[0].identity)
        wait_for(lambda: known.tasks() == [spec.name])
        with Fleet(spec, members).at_work([relay.address]) as work:
            for point, following in zip(RELAY_POINTS, (*RELAY_POINTS[1:], ""), strict=True):
                wait_for(lambda: relay.has_died or work.is_over, 60)
                assert relay.has_died, f"{point} was never met"
                relay.kill()
                relay.start(failpoint=following)
            work.finish(120)
    assert work.refusals, "devices noticed"
    _check(spec, tmp_path / "upstream", tmp_path / "relay", size)


def _prepare(folder: Path, spec: TaskSpec | None = None, relay_for: int | None = None) -> str:
    """Make the state of a server, and a token that lets devices or relays in."""
    site = Site(folder)
    if spec is not None:
        site.add_task(spec)
    token = make_enrolment_token(site.store, 0.0, relay_for=relay_for)
    site.store.close()
    return token


def _enrol(server: ServerProcess, token: str, k: int) -> Member:
    identity = enrol_one(server.address, token, f"d{k}")
    return Member(identity.device_id, identity, k)


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
