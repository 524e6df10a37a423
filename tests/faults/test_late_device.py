"""A device that is too slow takes part in the next round: with new work, or with what it did."""

from __future__ import annotations

from pathlib import Path

import pytest

import edge_sdk.training.local_trainer
from edge_sdk.planning.allowance import Allowance
from edge_sdk.rounds.round_loop import RoundLoop
from tests.numpy_device import NumpyDevice, enrol_one
from tests.processes import ServerProcess
from tests.tiny_model import write_jsonl

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("stragglers", "outcome"),
    [("refuse", [(1, False), (2, True)]), ("fold", [(1, True)])],
)
def test_device_that_misses_a_round_is_not_counted_there_but_in_the_next(
    tmp_path: Path, tiny_llama: Path, monkeypatch, stragglers, outcome
):
    """A faster device completes the quorum of one while the slow one is training."""
    with ServerProcess(tmp_path / "server") as server:
        server.command(
            *("task", "create", "t", "--model", str(tiny_llama), "--rank", "4"),
            *("--sketch-sizes", "2", "--rounds", "2", "--cohort-size", "2", "--quorum", "1"),
            *("--local-steps", "2", "--stragglers", stragglers),
        )
        secret = server.command("token", "create")["enrolment_token"]
        fast = NumpyDevice(server.address, enrol_one(server.address, secret, "fast"), "t", 2)
        train_round = edge_sdk.training.local_trainer.train_round
        overtaken = []

        def overtaken_once(*args, **settings):
            if not overtaken:
                work = fast.wait_for_work()
                overtaken.append(fast.submit(work, fast.made_up_update(work, fast.fetch(work))))
                fast.wait_for_version(1)
            return train_round(*args, **settings)

        monkeypatch.setattr("edge_sdk.training.local_trainer.train_round", overtaken_once)
        slow = RoundLoop(
            data=write_jsonl(tmp_path / "data.jsonl", [{"text": "what is red"}]),
            server=server.address,
            enrolment_token=secret,
            state_folder=tmp_path / "slow",
            allowance=Allowance(quantization="fp32", threads=1),
        )
        assert [(x.round_number, x.counted) for x in slow.rounds()] == outcome
        assert fast.transport.round_status("t", 2).accepted == 1
        assert fast.transport.round_status("t", 1).accepted == 1
        assert len(fast.transport.adapters("t")) == 3
