"""Two servers on one PostgreSQL and one S3 server do what one server does.

``EDGE_TEST_DEVICES`` says how many devices they have.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.faults.fleet import make_fleet
from tests.server.tasks import tiny_spec

DEVICES = int(os.environ.get("EDGE_TEST_DEVICES", "30"))
UP_S = 2.0

pytestmark = pytest.mark.processes


def test_two_replicas_one_of_them_killed_again_and_again_give_the_adapter_of_one(
    replicas,
    tmp_path,
):
    spec = tiny_spec(dense=False, rounds=2, cohort_size=DEVICES, quorum=DEVICES)
    steady, shaky = replicas.server("steady"), replicas.server("shaky")
    kills = 0
    with steady, shaky:
        fleet = make_fleet(steady, replicas.settings("steady"), spec, DEVICES)
        with fleet.at_work([steady.address, shaky.address], pause_s=DEVICES / 100) as work:
            while not work.is_over:
                time.sleep(UP_S)
                shaky.kill()
                kills += 1
                shaky.start()
            work.finish()
        fleet.check(replicas.settings("steady"), tmp_path / "expected")
    assert kills > 1
    assert work.refusals, "devices noticed"


def test_replicas_that_look_at_once_close_a_round_once(replicas, tmp_path):
    """Devices of either one, no kills: both closers see every frozen round."""
    spec = tiny_spec(dense=False, rounds=5, cohort_size=4, quorum=4)
    one, other = replicas.server("one"), replicas.server("other")
    with one, other:
        fleet = make_fleet(one, replicas.settings("one"), spec, 4)
        with fleet.at_work([one.address, other.address]) as work:
            work.finish()
        fleet.check(replicas.settings("one"), tmp_path / "expected")
    assert work.refusals == []
