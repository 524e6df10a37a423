"""Memory that runs out ends in a smaller update of the same round, or in one clear line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.errors import NotFound
from edge_sdk.identity.identity import load_identity
from edge_sdk.network.transport import Transport
from edge_sdk.sketch import derive_seed, draw_sketch
from edge_sdk.wire.payload import Arrays, adapter_shapes, decode
from edge_sdk.wire.task import TaskSpec
from tests.faults.conftest import SEED, R, ThirstyTask
from tests.processes import start_device

BUDGET_BYTES = 900_000_000
SQUEEZED = "tests.faults.squeezed_device"

pytestmark = pytest.mark.processes


def run_squeezed(task: ThirstyTask, state: Path, when: str) -> tuple[int, list[dict], str]:
    """Run one device whose memory runs out; return its status, its rounds and its log."""
    device = start_device(
        *("--server", task.server.address, "--token", task.token, "--state", str(state)),
        *("--data", str(task.data), "--threads", "1", "--quantization", "fp32"),
        *("--memory-budget", str(BUDGET_BYTES)),
        program=[SQUEEZED, when, "--verbose"],
    )
    lines, log = device.communicate(timeout=120)
    return device.returncode, [json.loads(line) for line in lines.splitlines()], log


def test_memory_that_runs_out_in_step_3_ends_in_a_smaller_update_of_the_same_round(
    thirsty, tmp_path
):
    status, rounds, log = run_squeezed(thirsty, tmp_path / "device", "step-3")
    assert status == 0, log
    (first_k, second_k) = map(int, re.findall(r"round 1: training (\d+) ranks", log))
    assert first_k == R > second_k
    (refused,) = re.findall(r"^memory ran out while training.*$", log, flags=re.MULTILINE)
    assert re.search(
        rf"training {R} ranks.*memory.*going on with less: trains {second_k} of", refused
    )
    before, after = log.split(refused)
    assert re.findall(r"^step (\d)", before, flags=re.MULTILINE) == ["1", "2"]
    assert re.findall(r"^step (\d)", after, flags=re.MULTILINE) == list("1234" * len(rounds))

    assert [(x["round_number"], x["k"], x["counted"]) for x in rounds] == [
        (1, second_k, True),
        (2, second_k, True),
    ]
    assert max(x["peak_rss_bytes"] for x in rounds) <= BUDGET_BYTES
    assert max(x["peak_rss_bytes"] for x in rounds) > 0.8 * BUDGET_BYTES, "it really ran out"
    identity = load_identity(tmp_path / "device")
    transport = Transport(thirsty.server.address, identity)
    closed = transport.round_status("t", 1)
    assert (closed.state, closed.assigned, closed.accepted) == ("closed", 1, 1)
    check_moved_ranks(transport, identity.device_id, second_k)
    assert not (tmp_path / "device" / "calibration.json").exists(), "that peak teaches nothing"


def check_moved_ranks(transport: Transport, device_id: str, k: int) -> None:
    """Round 1 moved the ranks that the server's record draws for k, and no other."""
    task = transport.task("t")
    before, after = (adapter(transport, task, version) for version in (0, 1))
    sketch = draw_sketch(derive_seed(SEED, 1, device_id), R, k, len(task.adapter.layers))
    for layer, indices in zip(task.adapter.layers, sketch, strict=True):
        for factor, others in (("A", 1), ("B", 0)):
            name = f"{layer.name}.lora_{factor}"
            moved = (after[name] != before[name]).any(axis=others)
            np.testing.assert_array_equal(np.flatnonzero(moved), indices, err_msg=name)


def adapter(transport: Transport, task: TaskSpec, version: int) -> Arrays:
    digest = transport.adapters(task.name)[version].digest
    body = transport.adapter_body(task, version, digest)
    return decode(body, adapter_shapes(task.adapter, R))[0]


def test_a_base_that_never_fits_ends_in_one_line_and_no_round(thirstier, tmp_path):
    """Every smaller plan is tried, then there is none left."""
    status, rounds, log = run_squeezed(thirstier, tmp_path / "device", "every-load")
    assert (status, rounds) == (1, []), log
    tried = re.findall(r"memory ran out while the base model was loaded.*less: trains (\d)", log)
    assert tried, log
    assert tried == sorted(tried, reverse=True)
    assert log.count("loading the base model") == 1 + len(tried), "each plan is tried once"
    last = log.splitlines()[-1]
    assert last.startswith("edge-sdk: ")
    assert "short of" in last
    assert "memory" in last
    assert "Traceback" not in log
    identity = load_identity(tmp_path / "device")
    with pytest.raises(NotFound):
        Transport(thirstier.server.address, identity).round_status("t", 1)
