"""A device that loses its power, or is killed, at any moment of a round: counted once, the same.

``EDGE_TEST_KILLS`` says how many kills at random moments there are.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_sdk.identity import load_identity
from edge_sdk.transport import Transport
from tests.faults.forked_device import Devices
from tests.processes import ServerProcess, run_json
from tests.tiny_model import write_jsonl

KILLS = int(os.environ.get("EDGE_TEST_KILLS", "4"))
STEPS = 6
LEFT = ("nothing", "partial", "empty", "half", "most", "whole")
WRITES = [
    *(f"work:1:{left}" for left in LEFT),
    *(f"progress:{number}:{left}" for number in (1, STEPS) for left in LEFT),
    *(f"update:1:{left}" for left in LEFT),
    *(f"removal:{number}:nothing" for number in (1, 2, 3)),
]
"""The first slice, the first and the last progress, the update; then progress, slice and update
are removed."""

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devices]:
    with Devices(tmp_path_factory.mktemp("devices")) as found:
        yield found


@dataclass(frozen=True)
class Twins:
    """One device on a server that is there twice: undisturbed, and as it is disturbed.

    Attributes:
        folder: Of all their state.
        flags: Of ``edge-sdk run``.
        port: Of both servers, one at a time.
        rounds: Of the task.
        undisturbed: Digests of the versions of the adapter.
        round_s: Time the undisturbed device took for a round.
    """

    folder: Path
    flags: list[str]
    port: int
    rounds: int
    undisturbed: list[str]
    round_s: float

    def server(self) -> ServerProcess:
        return ServerProcess(self.folder / "war", port=self.port)

    def check(self, server: ServerProcess) -> None:
        """Every round has one update, and every version is that of the undisturbed device."""
        transport = Transport(server.address, load_identity(self.folder / "device"))
        states = [transport.round_status("t", 1 + number) for number in range(self.rounds)]
        assert {(x.state, x.assigned, x.accepted) for x in states} == {("closed", 1, 1)}
        assert [info.digest for info in transport.adapters("t")] == self.undisturbed
        left = [path for path in (self.folder / "device" / "journal").rglob("*") if path.is_file()]
        assert [path for path in left if path.parent.name != "set-aside"] == []


def make_twins(
    folder: Path, model: Path, devices: Devices, rounds: int, steps: int, *more: str
) -> Twins:
    """Let the undisturbed one take part to the end; its state from before is the other one's."""
    data = write_jsonl(
        folder / "data.jsonl",
        [{"prompt": f"what is the {w} ? answer :", "completion": " yes"} for w in ("one", "two")],
    )
    with ServerProcess(folder / "peace") as server:
        server.command(
            *("task", "create", "t", "--model", str(model), "--rank", "4", "--seed", "5"),
            *("--sketch-sizes", "2", "--rounds", str(rounds), "--cohort-size", "1"),
            *("--local-steps", str(steps), "--deadline", "120", *more),
        )
        secret = server.command("token", "create")["enrolment_token"]
        run_json(
            *("edge_sdk", "join", server.address, "--token", secret),
            *("--state", str(folder / "device")),
        )
        port = server.port
    shutil.copytree(folder / "peace", folder / "war")
    shutil.copytree(folder / "device", folder / "twin")
    flags = ["--data", str(data), "--threads", "1", "--quantization", "fp32", "--json"]
    with ServerProcess(folder / "peace", port=port) as server:
        twin = devices.start("run", "--state", str(folder / "twin"), *flags)
        assert twin.wait() == 0, twin.said()
        assert [done["counted"] for done in twin.rounds()] == [True] * rounds
        transport = Transport(server.address, load_identity(folder / "twin"))
        undisturbed = [info.digest for info in transport.adapters("t")]
        times = [info.created_at for info in transport.adapters("t")]
    assert len(set(undisturbed)) == rounds + 1, "every round moves the adapter"
    flags = ["run", "--state", str(folder / "device"), *flags]
    return Twins(folder, flags, port, rounds, undisturbed, (times[-1] - times[1]) / (rounds - 1))


def test_power_lost_at_any_write_of_the_journal_costs_nothing_and_counts_nothing_twice(
    devices, tmp_path, tiny_llama
):
    """Each loss is that of another process, which goes on where the one before was cut off."""
    twins = make_twins(tmp_path, tiny_llama, devices, len(WRITES) + 1, STEPS)
    with twins.server() as server:
        for write in WRITES:
            device = devices.start(*twins.flags, failpoint=write)
            assert device.wait() == -signal.SIGKILL, f"{write} was never met: {device.said()}"
        device = devices.start(*twins.flags)
        assert device.wait() == 0, device.said()
        twins.check(server)


def test_killed_at_random_moments_it_ends_every_round_with_the_same_one_update(
    devices, tmp_path, tiny_llama
):
    rng = random.Random(7)
    twins = make_twins(tmp_path, tiny_llama, devices, 2 * KILLS + 2, 30)
    with twins.server() as server:
        for _ in range(KILLS):
            device = devices.start(*twins.flags)
            time.sleep(rng.uniform(0.0, 1.0 + 2 * twins.round_s))
            assert device.kill() == -signal.SIGKILL, f"it was done before: {device.said()}"
        device = devices.start(*twins.flags)
        assert device.wait() == 0, device.said()
        twins.check(server)
