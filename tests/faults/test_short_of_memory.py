"""A device whose owner needs the memory pauses, goes on, or steps down, and leaves no limit."""

from __future__ import annotations

import logging
import re
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import edge_sdk.training.local_trainer
import edge_sdk.training.trainable_base
from edge_sdk.errors import OutOfMemory
from edge_sdk.memory.memory_guard import MemoryGuard
from edge_sdk.planning.allowance import Allowance
from edge_sdk.rounds.round_loop import RoundLoop
from tests.faults.conftest import LAST_STEP, R, ThirstyTask
from tests.numpy_device import NumpyDevice, enrol_one

PLENTY, NOTHING = 1 << 50, 0

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def limits_are_restored():
    """Whatever happened to a client, its process may use what it might before."""
    kinds = (resource.RLIMIT_DATA, resource.RLIMIT_AS)
    before = [resource.getrlimit(kind) for kind in kinds]
    yield
    assert [resource.getrlimit(kind) for kind in kinds] == before


@pytest.fixture
def client(thirsty: ThirstyTask, tmp_path: Path, caplog) -> RoundLoop:
    return make_client(thirsty, tmp_path, caplog, "t")


def make_client(thirsty: ThirstyTask, folder: Path, caplog, task: str) -> RoundLoop:
    caplog.set_level(logging.DEBUG, logger="edge_sdk")
    return RoundLoop(
        data=thirsty.data,
        server=thirsty.server.address,
        task=task,
        enrolment_token=thirsty.token,
        state_folder=folder / "device",
        allowance=Allowance(quantization="fp32", threads=1),
    )


def watch(monkeypatch, available: Callable[[], int], patience_s: float) -> None:
    """Let every guard of a client see this much free memory, and wait no real time."""
    slept = [0.0]
    guard = partial(
        MemoryGuard,
        available=available,
        patience_s=patience_s,
        clock=lambda: slept[0],
        sleep=lambda seconds: slept.append(slept.pop() + seconds),
    )
    monkeypatch.setattr(edge_sdk.training.local_trainer, "MemoryGuard", guard)


def is_limited() -> bool:
    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


def test_training_pauses_while_the_owner_needs_the_memory_and_goes_on(client, monkeypatch, caplog):
    """Free after loading, short after the first step for six looks, then free again."""
    answers = [PLENTY, *[NOTHING] * 6]
    limited = []

    def available() -> int:
        limited.append(is_limited())
        return answers.pop(0) if answers else PLENTY

    watch(monkeypatch, available, patience_s=60)
    first, second = client.rounds()
    assert [(x.round_number, x.k, x.counted) for x in (first, second)] == [
        (1, R, True),
        (2, R, True),
    ]
    (paused,) = re.findall(r"paused for (\d+) s", caplog.text)
    assert paused == "2", "after the first look, five more with half a second before the next"
    assert answers == []
    assert all(limited), "the budget is held while it waits"
    assert len(limited) == 1 + 6 + 2 * LAST_STEP


def test_memory_that_stays_short_beyond_the_patience_ends_in_a_smaller_sketch(
    client, monkeypatch, caplog, thirsty
):
    """Short through the whole first attempt; when the device has stepped down there is room."""
    watch(
        monkeypatch,
        lambda: PLENTY if "going on with less" in caplog.text or is_loading(caplog) else NOTHING,
        patience_s=3,
    )
    first, second = client.rounds()
    assert [(x.round_number, x.counted) for x in (first, second)] == [(1, True), (2, True)]
    assert first.k == second.k < R
    assert re.search(r"after a pause of 3 s.*train later.*going on with less", caplog.text)
    assert caplog.text.count("step 1:") == 3, "one step of the first attempt, and one per round"


def is_loading(caplog) -> bool:
    return "training" not in caplog.text


def test_memory_that_runs_out_while_the_base_loads_ends_in_a_smaller_plan(
    client, monkeypatch, caplog
):
    open_lean_base = edge_sdk.training.trainable_base.open_lean_base
    loads = []

    def squeezed_once(*arguments, **how):
        loads.append(is_limited())
        if len(loads) == 1:
            torch.empty(1 << 60, dtype=torch.uint8)
        return open_lean_base(*arguments, **how)

    monkeypatch.setattr(edge_sdk.training.trainable_base, "open_lean_base", squeezed_once)
    first, second = client.rounds()
    assert loads == [True, True]
    assert first.k == second.k < R
    assert first.counted and second.counted  # noqa: PT018
    assert re.search(r"ran out while the base model was loaded.*going on with less", caplog.text)


def test_a_round_that_closes_while_a_device_steps_down_is_left_for_the_next(
    thirsty, tmp_path, monkeypatch, caplog
):
    """A faster device completes the quorum while memory runs out on this one."""
    thirsty.server.command(
        *("task", "create", "pair", "--model", str(thirsty.model), "--rank", str(R)),
        *("--sketch-sizes", "1,2,4,8", "--rounds", "2", "--cohort-size", "2", "--quorum", "1"),
        *("--batch-size", "24", "--max-length", "96", "--local-steps", "1"),
        *("--update-encoding", "wire"),
    )
    identity = enrol_one(thirsty.server.address, thirsty.token, "fast")
    fast = NumpyDevice(thirsty.server.address, identity, "pair", 2)
    train_round = edge_sdk.training.local_trainer.train_round
    attempts = []

    def overtaken_once(*arguments, **how):
        attempts.append(arguments)
        if len(attempts) > 1:
            return train_round(*arguments, **how)
        work = fast.wait_for_work()
        fast.submit(work, fast.made_up_update(work, fast.fetch(work)))
        fast.wait_for_version(1)
        raise OutOfMemory("memory ran out")

    monkeypatch.setattr(edge_sdk.training.local_trainer, "train_round", overtaken_once)
    (done,) = make_client(thirsty, tmp_path, caplog, "pair").rounds()
    assert (done.round_number, done.counted) == (2, True)
    assert done.k < R
    assert len(attempts) == 2, "no attempt at the round that is over"
    assert "round 1 closed before this device was done" in caplog.text
    assert fast.transport.round_status("pair", 1).accepted == 1
