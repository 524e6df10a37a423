"""What is kept of a round outlives outages, restarts and the round's own end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

import edge_sdk.training.local_trainer
from edge_sdk.errors import ServerUnreachable
from edge_sdk.lean.trainee import LeanTrainee
from edge_sdk.planning.local_plan import Allowance
from edge_sdk.rounds.journal import Journal
from edge_sdk.rounds.round_loop import RoundLoop
from tests.numpy_device import NumpyDevice, enrol_one
from tests.processes import ServerProcess
from tests.tiny_model import write_jsonl

pytestmark = pytest.mark.processes

_numbers = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def secret(server: ServerProcess) -> str:
    return str(server.command("token", "create")["enrolment_token"])


@pytest.fixture
def task(server: ServerProcess, tiny_llama: Path) -> str:
    """Two rounds, each closed by the first update of at most two devices."""
    name = f"t{next(_numbers)}"
    server.command(
        *("task", "create", name, "--model", str(tiny_llama), "--rank", "4", "--rounds", "2"),
        *("--sketch-sizes", "2", "--cohort-size", "2", "--quorum", "1", "--local-steps", "4"),
        *("--deadline", "2"),
    )
    return name


@pytest.fixture
def device(server: ServerProcess, secret: str, task: str, tmp_path: Path):
    """Makes the same device anew, as a restart does."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": "what is red"}, {"text": "who was blue"}])

    def make() -> RoundLoop:
        return RoundLoop(
            data=data,
            task=task,
            server=server.address,
            enrolment_token=secret,
            state_folder=tmp_path / "device",
            allowance=Allowance(quantization="fp32", threads=1),
            outage_patience_s=0.1,
        )

    return make


def never_train(*_: object, **how: object):
    raise AssertionError("there was nothing left to train")


def left_in(folder: Path) -> list[str]:
    return [path.name for path in (folder / "journal").rglob("*") if path.is_file()]


def fail_to_send(server: ServerProcess, device, monkeypatch) -> None:
    """Train round 1, and have no server to send the update to; then the server is back."""
    train_round = edge_sdk.training.local_trainer.train_round

    def killed_at_the_end(*arguments, **how):
        result = train_round(*arguments, **how)
        server.kill()
        return result

    monkeypatch.setattr("edge_sdk.training.local_trainer.train_round", killed_at_the_end)
    with pytest.raises(ServerUnreachable):
        next(device().rounds())
    server.start()
    monkeypatch.setattr("edge_sdk.training.local_trainer.train_round", never_train)


def test_a_finished_update_outlives_an_outage_and_a_restart(server, device, monkeypatch, tmp_path):
    fail_to_send(server, device, monkeypatch)
    assert left_in(tmp_path / "device") == ["update"]
    done = next(device().rounds())
    assert (done.round_number, done.k, done.counted) == (1, 2, True)
    assert done.upload_bytes >= done.update_bytes > 0
    assert left_in(tmp_path / "device") == []


def test_an_update_that_comes_back_to_a_closed_round_is_reported_and_forgotten(
    server, secret, task, device, monkeypatch, tmp_path
):
    fail_to_send(server, device, monkeypatch)
    fast = NumpyDevice(server.address, enrol_one(server.address, secret, "fast"), task, 2)
    work = fast.wait_for_work()
    fast.submit(work, fast.made_up_update(work, fast.fetch(work)))
    fast.wait_for_version(1)
    done = next(device().rounds())
    assert (done.round_number, done.counted) == (1, False)
    assert left_in(tmp_path / "device") == []


def test_an_update_counted_before_is_not_reported_as_lost_when_the_answer_was(
    server, task, device, monkeypatch
):
    """As after a loss of power between the answer and the removal of the update."""
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "clear", lambda journal: None)
        first = next(device().rounds())
    status = device().membership.transport.round_status
    while status(task, 1).state != "closed":
        time.sleep(0.05)
    again = next(device().rounds())
    assert (again.round_number, again.counted, again.loss) == (1, True, first.loss)
    assert status(task, 1).accepted == 1


def test_a_round_out_of_reach_is_given_up_and_goes_on_if_it_is_prolonged(
    device, monkeypatch, caplog, tmp_path
):
    """The server has no other update: after the deadline it gives the same work again."""
    gradients, steps = LeanTrainee.gradients, []

    def slow(trainee, examples):
        if not any("given up" in record.getMessage() for record in caplog.records):
            time.sleep(1.5)
        steps.append(len(examples))
        return gradients(trainee, examples)

    train_round = edge_sdk.training.local_trainer.train_round

    def slowed(*arguments, **how):
        with monkeypatch.context() as patch:
            patch.setattr(LeanTrainee, "gradients", slow)
            return train_round(*arguments, **how)

    monkeypatch.setattr("edge_sdk.training.local_trainer.train_round", slowed)
    with caplog.at_level(logging.INFO, "edge_sdk"):
        done = next(device().rounds())
    assert "too early for the 2 steps that are left: given up" in caplog.text
    assert "2 steps are done" in caplog.text
    assert (done.round_number, done.counted, len(steps)) == (1, True, 4)
