"""On this device: a plan from what was measured, within what the owner allowed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edge_sdk.device import probe
from edge_sdk.errors import ConfigError
from edge_sdk.files.whole_file import write_whole
from edge_sdk.planning import microbenchmark
from edge_sdk.planning.allowance import QUANTIZATIONS, Allowance
from edge_sdk.planning.cost import cost_of
from edge_sdk.planning.local_plan import LocalPlanner
from tests.sdk.workloads import RATES, llama_shape, workload

WORK = workload(llama_shape(num_hidden_layers=3, vocab_size=8000))


@pytest.fixture
def no_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own; whatever starts a benchmark fails."""
    monkeypatch.setattr(
        microbenchmark.platformdirs, "user_cache_path", lambda name: tmp_path / "cache"
    )
    monkeypatch.setattr("sys.executable", "/nowhere/python")


@pytest.fixture
def measured_device(no_benchmark: None) -> None:
    """A device that was measured before, on one thread."""
    write_whole(microbenchmark._path(probe(), 1), msgspec.json.encode(RATES))


def planner(tmp_path: Path, **allowance: object) -> LocalPlanner:
    return LocalPlanner(Allowance(threads=1, **allowance), tmp_path / "state", "model")


def test_plan_counts_with_the_measured_rates(tmp_path, measured_device):
    found = planner(tmp_path)
    assert found.machine().rates == RATES
    plan = found.plan(WORK)
    assert plan.cost == cost_of(WORK, found.machine(), plan.budget, plan.execution)


def test_benchmark_is_run_only_when_asked_for(tmp_path, no_benchmark, caplog):
    assert planner(tmp_path).machine().rates.origin == "assumed"
    assert caplog.text == ""
    assert planner(tmp_path).machine(measure=True).rates.origin == "assumed"
    assert "cannot be started" in caplog.text


def test_budget_is_never_more_than_what_is_free(tmp_path, measured_device):
    endless = planner(tmp_path, memory_bytes=10**18).budget()
    total = probe().memory_total_bytes
    assert 0 < endless.memory_bytes <= total
    unstated = planner(tmp_path).budget()
    assert 0 < unstated.memory_bytes < endless.memory_bytes
    reserved = planner(tmp_path, memory_bytes=10**18, reserved_bytes=total).budget()
    assert reserved.memory_bytes == 0
    assert planner(tmp_path, memory_bytes=10**6).budget().memory_bytes == 10**6


def test_budget_holds_what_the_owner_allowed(tmp_path, measured_device):
    budget = planner(
        tmp_path,
        round_s=60.0,
        transfer_bytes=10**6,
        uplink_bytes_per_s=1e4,
        downlink_bytes_per_s=2e4,
    ).budget()
    assert (budget.round_s, budget.transfer_bytes) == (60.0, 10**6)
    assert (budget.uplink_bytes_per_s, budget.downlink_bytes_per_s) == (1e4, 2e4)


def test_length_of_a_round_counts_where_the_speed_was_measured(tmp_path, measured_device):
    assert planner(tmp_path).plan(WORK, deadline_s=500.0).budget.round_s == 500.0
    own = planner(tmp_path, round_s=400.0)
    assert own.plan(WORK, deadline_s=500.0).budget.round_s == 400.0, "the owner's word counts"


def test_assumed_speed_is_no_reason_to_miss_a_round(tmp_path, no_benchmark):
    plan = planner(tmp_path).plan(WORK, deadline_s=1e-3)
    assert plan.budget.round_s is None
    assert plan.k == 16


def test_what_a_run_took_corrects_the_next_plan(tmp_path, measured_device):
    first = planner(tmp_path)
    plan = first.plan(WORK)
    peak_bytes, step_s = plan.cost.peak_bytes + 10**7, 2 * plan.cost.step_s
    first.learn(plan, WORK, plan.execution.length, peak_bytes, step_s)
    second = planner(tmp_path)
    again = cost_of(WORK, second.machine(), plan.budget, plan.execution)
    assert again.is_calibrated
    assert again.peak_bytes == peak_bytes
    assert again.step_s == pytest.approx(step_s)


def test_run_of_short_examples_does_not_promise_too_much(tmp_path, measured_device):
    """What was left over because examples were short is no correction."""
    first = planner(tmp_path)
    plan = first.plan(WORK)
    short = cost_of(WORK, first.machine(), plan.budget, replace(plan.execution, length=20))
    first.learn(plan, WORK, 20, short.peak_bytes, short.step_s)
    corrected = planner(tmp_path).machine().corrections[plan.execution.quantization]
    assert corrected.memory_bytes == 0
    assert corrected.time_factor == pytest.approx(1.0)


def test_state_folder_that_cannot_be_written_costs_only_the_lesson(
    tmp_path, measured_device, caplog
):
    (tmp_path / "state").write_text("a file, not a folder", encoding="utf-8")
    found = planner(tmp_path)
    plan = found.plan(WORK)
    found.learn(plan, WORK, plan.execution.length, plan.cost.peak_bytes, plan.cost.step_s)
    assert "cannot be written" in caplog.text
    assert found.machine().corrections == {}


def test_threads_are_the_cores_unless_the_owner_says_otherwise(tmp_path, no_benchmark):
    assert planner(tmp_path).threads == 1
    unsaid = LocalPlanner(Allowance(), tmp_path, "model")
    assert unsaid.threads == probe().cores <= (os.cpu_count() or 1)


def test_owner_chooses_one_number_format_or_leaves_all():
    assert Allowance(quantization="fp32").quantizations == ("fp32",)
    assert Allowance().quantizations == QUANTIZATIONS == ("nf4", "int8", "bf16", "fp32")


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": 0},
        {"threads": -1},
        {"memory_bytes": 0},
        {"round_s": 0.0},
        {"round_s": float("nan")},
        {"transfer_bytes": -5},
        {"uplink_bytes_per_s": 0.0},
        {"downlink_bytes_per_s": -1.0},
        {"reserved_bytes": -1},
    ],
    ids=str,
)
def test_allowance_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=.* must be"):
        Allowance(**wrong)
