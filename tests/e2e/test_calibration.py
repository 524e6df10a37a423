"""What a run on a device took corrects the next plan there, in another process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edge_sdk.compute.rates import assumed_rates
from edge_sdk.device import probe
from edge_sdk.planning import microbenchmark
from edge_sdk.planning.allowance import Allowance
from edge_sdk.rounds.round_loop import RoundLoop
from tests.processes import ServerProcess, start_device
from tests.tiny_model import write_jsonl

pytestmark = pytest.mark.processes


@pytest.fixture
def wrong_rates(tmp_path: Path, monkeypatch) -> None:
    """This device seems to have been measured, and its libraries to be half as large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rates = assumed_rates(1)
    rates = replace(rates, origin="measured", lean=replace(rates.lean, process_bytes=120_000_000))
    path = microbenchmark._path(probe(), threads=1)
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(rates))


def test_a_plan_after_a_run_predicts_the_peak_that_run_had(tmp_path, tiny_llama, wrong_rates):
    """Two fresh processes, one task each: the first is planned wrong, the second right."""
    records = [{"prompt": f"what is {w} ?", "completion": " yes"} for w in ("one", "two")]
    data = write_jsonl(tmp_path / "data.jsonl", records)
    state = tmp_path / "device"
    with ServerProcess(tmp_path / "server") as server:
        for name in ("first", "second"):
            server.command(
                *("task", "create", name, "--model", str(tiny_llama), "--rank", "4"),
                *("--rounds", "2", "--cohort-size", "1", "--local-steps", "2"),
            )
        token = server.command("token", "create")["enrolment_token"]
        device = ["--server", server.address, "--token", token, "--state", str(state)]
        how = ["--data", str(data), "--threads", "1", "--quantization", "fp32"]

        unknowing = run(*device, *how, "--task", "first")
        assert unknowing[0]["planned_bytes"] < 0.8 * unknowing[0]["peak_rss_bytes"]
        (learned,) = json.loads((state / "calibration.json").read_text()).values()
        assert learned["runs"] == 2
        assert learned["memory_bytes"] > 100_000_000
        assert learned["time_factor"] > 0

        plan = RoundLoop(
            task="second",
            state_folder=state,
            allowance=Allowance(quantization="fp32", threads=1),
        ).plan()
        assert plan.cost.is_calibrated
        assert plan.cost.peak_bytes == pytest.approx(unknowing[-1]["peak_rss_bytes"], rel=0.05)

        knowing = run(*device, *how, "--task", "second")
    assert knowing[0]["planned_bytes"] == pytest.approx(knowing[0]["peak_rss_bytes"], rel=0.05)


def run(*words: str) -> list[dict]:
    process = start_device(*words)
    lines, log = process.communicate(timeout=100)
    assert process.returncode == 0, log
    return [json.loads(line) for line in lines.splitlines()]
