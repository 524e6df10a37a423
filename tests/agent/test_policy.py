"""Every rule of a policy stops and resumes a real training process within a second."""

from __future__ import annotations

import time
from datetime import time as time_of_day

import pytest

from edge_sdk.agent.policy import Policy
from tests.agent.scripted import Script, cpu_s, wait_for_status, wait_for_training

pytestmark = pytest.mark.processes

STRICT = Policy(min_input_idle_s=300, quiet_hours="22:00-02:00")
BAD = {
    "power": {"battery_percent": 10},
    "network": {"is_metered": True},
    "cpu": {"other_cpu_percent": 95},
    "input": {"input_idle_s": 0},
    "temperature": {"temperature_c": 99},
    "hours": {"local_time": time_of_day(23)},
    "disk": {"free_disk_bytes": 1 << 20},
}
WITHIN_S = 1.0


def test_each_rule_stops_and_resumes_a_run_within_a_second_and_the_status_names_it(long_task):
    device = Script()
    with long_task.client(policy=STRICT, senses=device) as client:
        pid = wait_for_training(client).pid
        for rule, felt in BAD.items():
            device.feel(**felt)
            paused = wait_for_status(client, lambda x: x.state == "paused", WITHIN_S)
            assert (paused.rules, paused.pid) == ((rule,), pid)
            assert len(paused.reasons) == 1
            used_s = cpu_s(pid)
            time.sleep(0.3)
            assert cpu_s(pid) == used_s, rule
            device.feel()
            wait_for_status(client, lambda x: x.state == "training", WITHIN_S)
            end = time.monotonic() + WITHIN_S
            while cpu_s(pid) == used_s:
                assert time.monotonic() < end, rule
                time.sleep(0.01)


def test_memory_that_others_need_is_given_back_within_a_second_and_training_goes_on_later(
    long_task,
):
    device = Script()
    with long_task.client(policy=STRICT, senses=device) as client:
        before = wait_for_training(client)
        device.feel(free_memory_bytes=1 << 20)
        paused = wait_for_status(client, lambda x: x.state == "paused" and x.pid is None, WITHIN_S)
        assert paused.rules == ("memory",)
        device.feel()
        after = wait_for_training(client)
        assert after.pid != before.pid
        assert after.round_number == before.round_number
    assert after.crashes == 0


def test_rules_that_say_no_together_are_all_named(long_task):
    device = Script()
    device.feel(is_metered=True, temperature_c=99)
    with long_task.client(policy=STRICT, senses=device) as client:
        paused = wait_for_status(client, lambda x: x.state == "paused", WITHIN_S)
        assert paused.rules == ("network", "temperature")
        assert paused.pid is None
