"""``kill -9`` while updates come by way of the object store: nothing lost or doubled."""

from __future__ import annotations

import secrets
from contextlib import ExitStack

import pytest

from edge_sdk.network import transport
from server.failpoints import Point
from tests.faults.fleet import make_fleet
from tests.faults.storages import FAST, Installation
from tests.numpy_device import wait_for
from tests.server.tasks import tiny_spec

POINTS: tuple[Point, ...] = ("before-update-commit", "after-update-commit")
"""A staged update was read and does not count yet; it counts, and no receipt was sent."""

pytestmark = pytest.mark.processes


def test_killed_between_stage_and_count_it_gives_the_undisturbed_adapter(tmp_path, s3, monkeypatch):
    put, taken = transport.put_into_store, []

    def counted(*words, **more):
        taken.append(put(*words, **more))
        return taken[-1]

    monkeypatch.setattr(transport, "put_into_store", counted)
    installation = Installation(
        tmp_path,
        {
            **FAST,
            "EDGE_SERVER_BLOB_URL": f"s3://{s3.bucket}/{secrets.token_hex(6)}",
            "EDGE_SERVER_BLOB_ENDPOINT": s3.endpoint,
            "EDGE_SERVER_PRESIGNED_UPLOADS": "true",
        },
    )
    spec = tiny_spec(dense=False, rounds=2, cohort_size=2, quorum=2)
    server, settings = installation.server(), installation.settings()
    with ExitStack() as stack:
        stack.push(server)
        server.start(failpoint=POINTS[0])
        fleet = make_fleet(server, settings, spec, 2)
        with fleet.at_work([server.address]) as work:
            for following in (*POINTS[1:], ""):
                wait_for(lambda: server.has_died or work.is_over, 30)
                assert server.has_died
                server.kill()
                server.start(failpoint=following)
            work.finish()
        fleet.check(settings, tmp_path / "expected")
    assert taken.count(True) >= 2 * spec.policy.rounds, "all of it came by way of the store"
