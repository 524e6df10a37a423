"""``kill -9`` at every moment a round becomes durable, and at any other: nothing lost or doubled.

``EDGE_TEST_KILLS`` says how many random kills each storage gets.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from server.failpoints import POINTS
from tests.faults.fleet import make_fleet
from tests.numpy_device import wait_for
from tests.server.tasks import tiny_spec

KILLS = int(os.environ.get("EDGE_TEST_KILLS", "4"))

pytestmark = pytest.mark.processes


def test_killed_at_every_commit_point_it_gives_the_undisturbed_adapter(installation, tmp_path):
    """One seat stays empty, so that every round is frozen by its deadline, by the closer."""
    spec = tiny_spec(dense=False, rounds=5, cohort_size=4, quorum=4, min_updates=3, deadline_s=0.3)
    server, settings = installation.server(), installation.settings()
    with server:
        fleet = make_fleet(server, settings, spec, 3)
        with fleet.at_work([server.address]) as work:
            for point in POINTS:
                server.kill()
                server.start(failpoint=point)
                wait_for(lambda: server.has_died or work.is_over, 30)
                assert server.has_died, f"{point} was never met"
            server.kill()
            server.start()
            work.finish()
        fleet.check(settings, tmp_path / "expected")


def test_killed_at_random_times_under_load_it_gives_the_undisturbed_adapter(
    installation,
    tmp_path,
):
    size, rng = 4, random.Random(5)
    spec = tiny_spec(dense=False, rounds=2 * KILLS, cohort_size=size, quorum=size)
    server, settings = installation.server(), installation.settings()
    with server:
        fleet = make_fleet(server, settings, spec, size)
        with fleet.at_work([server.address]) as work:
            for _ in range(KILLS):
                time.sleep(rng.uniform(0.0, 0.3))
                assert not work.is_over, "every kill must meet devices at work"
                server.kill()
                server.start()
            work.finish(60 + 10 * KILLS)
        assert work.refusals, "devices noticed"
        fleet.check(settings, tmp_path / "expected")
