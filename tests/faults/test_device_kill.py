"""``kill -9`` of a device in the middle of its training: the round counts it once, later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edge_sdk.errors import NotFound
from edge_sdk.identity import load_identity
from edge_sdk.network.transport import Transport
from tests.numpy_device import wait_for
from tests.processes import ServerProcess, run_json, start_device
from tests.tiny_model import write_jsonl

pytestmark = pytest.mark.processes


def test_device_killed_in_training_finishes_the_same_round_when_started_again(
    tmp_path: Path, tiny_llama: Path
):
    """The adapter is bit-equal to that of a device nobody killed."""
    data = write_jsonl(
        tmp_path / "data.jsonl",
        [{"prompt": f"what is the {w} ? answer :", "completion": " yes"} for w in ("one", "two")],
    )
    with ServerProcess(tmp_path / "peace") as server:
        server.command(
            *("task", "create", "t", "--model", str(tiny_llama), "--rank", "4", "--seed", "5"),
            *("--sketch-sizes", "2", "--rounds", "1", "--cohort-size", "1"),
            *("--local-steps", "300", "--deadline", "120"),
        )
        secret = server.command("token", "create")["enrolment_token"]
        run_json(
            *("edge_sdk", "join", server.address, "--token", secret),
            *("--state", str(tmp_path / "device")),
        )
    identity = load_identity(tmp_path / "device")
    flags = ["--state", str(tmp_path / "device"), "--data", str(data), "--threads", "1"]
    flags += ["--quantization", "fp32"]

    shutil.copytree(tmp_path / "peace", tmp_path / "war")
    digests = {}
    for name, kill in (("peace", False), ("war", True)):
        with ServerProcess(tmp_path / name, port=int(identity.server.rsplit(":", 1)[1])) as server:
            transport = Transport(server.address, identity)
            if kill:
                victim = start_device(*flags)
                wait_for(lambda t=transport: _assigned(t), timeout_s=60)
                victim.kill()
                victim.communicate()
                assert transport.round_status("t", 1).accepted == 0
            device = start_device(*flags)
            lines, errors = device.communicate(timeout=100)
            assert device.returncode == 0, errors
            assert [json.loads(line)["counted"] for line in lines.splitlines()] == [True]
            status = transport.round_status("t", 1)
            assert (status.assigned, status.accepted) == (1, 1)
            digests[name] = [info.digest for info in transport.adapters("t")]
    assert digests["war"] == digests["peace"]


def _assigned(transport: Transport) -> bool:
    try:
        return transport.round_status("t", 1).assigned == 1
    except NotFound:
        return False
