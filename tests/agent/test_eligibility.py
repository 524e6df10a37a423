"""Every rule of a policy, by a scripted device; and the processor, by real work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import time as time_of_day

import psutil
import pytest

from edge_sdk.agent.eligibility import Eligibility, Verdict
from edge_sdk.agent.policy import Policy
from edge_sdk.agent.senses import Sensed, ThisDevice
from edge_sdk.errors import ConfigError
from tests.agent.scripted import Script

STRICT = Policy(
    min_battery_percent=60,
    max_other_cpu_percent=50,
    min_input_idle_s=300,
    max_temperature_c=80,
    quiet_hours="22:00-06:30",
    min_free_memory_bytes=1 << 30,
    min_free_disk_bytes=1 << 30,
)
NOON = {"local_time": time_of_day(12)}
RULES = [  # rule, stops, still stops because it stopped before, resumes
    ("power", {"battery_percent": 59}, {"battery_percent": 61}, {"battery_percent": 63}),
    ("network", {"is_metered": True}, None, {"is_metered": False}),
    ("cpu", {"other_cpu_percent": 51}, {"other_cpu_percent": 45}, {"other_cpu_percent": 40}),
    ("input", {"input_idle_s": 1}, None, {"input_idle_s": 301}),
    ("temperature", {"temperature_c": 81}, {"temperature_c": 76}, {"temperature_c": 75}),
    ("hours", {"local_time": time_of_day(23)}, None, {"local_time": time_of_day(7)}),
    ("memory", {"free_memory_bytes": 9 << 20}, {"free_memory_bytes": 1 << 30}, {}),
    ("disk", {"free_disk_bytes": 9 << 20}, {"free_disk_bytes": 1 << 30}, {}),
]


def stopping(rules: Eligibility) -> list[Verdict]:
    return [verdict for verdict in rules.check() if not verdict.may_train]


@pytest.mark.parametrize(("rule", "stop", "between", "resume"), RULES, ids=[x[0] for x in RULES])
def test_each_rule_stops_for_its_own_reason_and_resumes_without_flapping(
    rule, stop, between, resume
):
    device = Script()
    rules = Eligibility(STRICT, device)
    device.feel(**NOON)
    assert stopping(rules) == []
    if between is not None:
        device.feel(**{**NOON, **between})
        assert stopping(rules) == []  # it stops only once the limit itself is crossed
    device.feel(**{**NOON, **stop})
    (verdict,) = stopping(rules)
    assert verdict.rule == rule
    assert verdict.needs_memory is (rule == "memory")
    assert len(verdict.reason) > 10
    if between is not None:
        device.feel(**{**NOON, **between})
        assert [x.rule for x in stopping(rules)] == [rule]
    device.feel(**{**NOON, **resume})
    assert stopping(rules) == []


def test_what_a_device_cannot_tell_stops_nothing():
    class Numb:
        def read(self) -> Sensed:
            return Sensed(local_time=time_of_day(12))

    verdicts = Eligibility(STRICT, Numb()).check()
    assert all(verdict.may_train for verdict in verdicts)
    assert {verdict.rule for verdict in verdicts} == {rule for rule, *_ in RULES}
    assert sum("not known here" in verdict.reason for verdict in verdicts) == 5


def test_a_policy_without_rules_lets_everything_pass():
    device = Script()
    device.feel(battery_percent=1, is_metered=True, other_cpu_percent=100, free_memory_bytes=0)
    assert stopping(Eligibility(Policy.always(), device)) == []


def test_mains_overrule_an_empty_battery_and_an_unknown_charge_does_not_train_on_it():
    device = Script()
    rules = Eligibility(Policy(), device)
    device.feel(is_on_mains=True, battery_percent=1)
    assert stopping(rules) == []
    device.feel(is_on_mains=False, battery_percent=None)
    assert "unknown" in stopping(rules)[0].reason


@pytest.mark.parametrize(
    ("hours", "now", "is_quiet"),
    [
        ("22:00-06:30", "21:59", False),
        ("22:00-06:30", "22:00", True),
        ("22:00-06:30", "00:00", True),
        ("22:00-06:30", "06:29", True),
        ("22:00-06:30", "06:30", False),
        ("08:00-18:00", "07:59", False),
        ("08:00-18:00", "08:00", True),
        ("08:00-18:00", "18:00", False),
        ("00:00-23:59", "23:59", False),
    ],
)
def test_quiet_hours_begin_on_the_minute_and_may_span_midnight(hours, now, is_quiet):
    device = Script()
    device.feel(local_time=time_of_day.fromisoformat(now))
    verdicts = stopping(Eligibility(Policy(quiet_hours=hours), device))
    assert [x.rule for x in verdicts] == (["hours"] if is_quiet else [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"quiet_hours": "22:00"},
        {"quiet_hours": "24:00-06:00"},
        {"quiet_hours": "06:00-06:00"},
        {"min_battery_percent": 101},
        {"max_other_cpu_percent": -1},
        {"min_free_disk_bytes": -1},
    ],
)
def test_a_policy_that_cannot_be_is_refused_where_it_is_made(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Policy(**wrong)


def _burn() -> subprocess.Popen[bytes]:
    code = "import sys; print(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_the_work_of_others_is_felt_within_a_second_and_the_trainings_own_is_not(tmp_path):
    """By what two burning processes get, whatever else this machine does meanwhile."""
    burning = [_burn(), _burn()]
    try:
        seen = [psutil.Process(process.pid) for process in burning]

        def used_s() -> float:
            return sum(x.cpu_times().user + x.cpu_times().system for x in seen)

        others, own = ThisDevice(tmp_path, lambda: 0.0), ThisDevice(tmp_path, used_s)
        others.read(), own.read()
        before_s, begun = used_s(), time.monotonic()
        time.sleep(0.5)
        felt, felt_without = others.read().other_cpu_percent, own.read().other_cpu_percent
        share = 100 * (used_s() - before_s) / (time.monotonic() - begun) / os.cpu_count()
        assert felt is not None
        assert felt >= min(90.0, share) - 10
        assert felt_without <= felt - share + 15
    finally:
        for process in burning:
            process.kill()
            process.communicate()


def test_a_look_costs_less_than_two_milliseconds_of_processor_and_imports_nothing_heavy(tmp_path):
    script = f"""
import sys, time
from pathlib import Path
from edge_sdk.agent.eligibility import Eligibility
from edge_sdk.agent.policy import Policy
from edge_sdk.agent.senses import ThisDevice
rules = Eligibility(Policy(), ThisDevice(Path({str(tmp_path)!r}), lambda: 0.0))
rules.check()
looks = []
for _ in range(30):
    begun = time.process_time()
    rules.check()
    looks.append(time.process_time() - begun)
    time.sleep(0.02)
print(sorted(looks)[15], *(x for x in ("torch", "numpy", "requests") if x in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    median_s, *heavy = done.stdout.split()
    assert float(median_s) < 0.002
    assert heavy == []
