"""A device that loses its power, or is killed, at any moment of a round: counted once, the same.

``EDGE_TEST_KILLS`` says how many kills at random moments there are; if it is set, power is lost at
every write, and after every torn length, instead of at some.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from edge_sdk.errors import NotFound
from edge_sdk.identity.identity import load_identity
from edge_sdk.network.transport import Transport
from tests.faults.forked_device import Devices
from tests.numpy_device import wait_for
from tests.processes import ServerProcess, run_json
from tests.tiny_model import write_jsonl

EVERY = "EDGE_TEST_KILLS" in os.environ
KILLS = int(os.environ.get("EDGE_TEST_KILLS", "2"))
HOST_KILLS = KILLS if EVERY else 1
STEPS = 3
LEFT = ("nothing", "partial", "empty", "half", "most", "whole")
WRITES = [
    *(f"work:1:{left}" for left in LEFT),
    *(f"progress:{number}:{left}" for number in (1, STEPS) for left in LEFT),
    *(f"update:1:{left}" for left in LEFT),
    *(f"removal:{number}:nothing" for number in (1, 2, 3)),
]
"""The slice, the first and the last progress and the update are written; then the progress, the
slice and the update are removed."""

SOME_WRITES = [
    "work:1:half",
    "progress:1:most",
    "update:1:half",
    "removal:1:nothing",
    "removal:3:nothing",
]

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
        twin = devices.start("run", "--now", "--state", str(folder / "twin"), *flags)
        assert twin.wait() == 0, twin.said()
        assert [done["counted"] for done in twin.rounds()] == [True] * rounds
        transport = Transport(server.address, load_identity(folder / "twin"))
        undisturbed = [info.digest for info in transport.adapters("t")]
        times = [info.created_at for info in transport.adapters("t")]
    assert len(set(undisturbed)) == rounds + 1, "every round moves the adapter"
    flags = ["run", "--now", "--state", str(folder / "device"), *flags]
    return Twins(folder, flags, port, rounds, undisturbed, (times[-1] - times[1]) / (rounds - 1))


def test_power_lost_at_any_write_of_the_journal_costs_nothing_and_counts_nothing_twice(
    devices, tmp_path, tiny_llama
):
    """Each loss is that of another process, which goes on where the one before was cut off."""
    writes = WRITES if EVERY else SOME_WRITES
    twins = make_twins(tmp_path, tiny_llama, devices, len(writes) + 1, STEPS)
    with twins.server() as server:
        for write in writes:
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


def test_a_host_and_its_trainer_killed_at_random_moments_end_every_round_with_the_same_one_update(
    devices, tmp_path, tiny_llama
):
    """The trainer is killed under a host that lives, which starts another; then the host is."""
    rng = random.Random(11)
    twins = make_twins(tmp_path, tiny_llama, devices, 2 * HOST_KILLS + 2, 30)
    with twins.server() as server:
        transport = Transport(server.address, load_identity(tmp_path / "device"))
        host, started = start_host(twins), time.monotonic()
        try:
            wait_for(lambda: has_begun(transport), 120)
            until_first_s = time.monotonic() - started
            for _ in range(HOST_KILLS):
                first = wait_for_trainer(host, other_than=None)
                time.sleep(rng.uniform(0.0, 2 * twins.round_s))
                first.kill()
                second = wait_for_trainer(host, other_than=first)
                time.sleep(rng.uniform(0.0, until_first_s + 2 * twins.round_s))
                assert host.poll() is None, "it was done before"
                host.kill()
                host.communicate()
                wait_for(lambda orphan=second: not orphan.is_running(), 20)
                host = start_host(twins)
            _, errors = host.communicate(timeout=280)
            assert host.returncode == 0, errors
        finally:
            host.kill()
            host.communicate()
        twins.check(server)


def has_begun(transport: Transport) -> bool:
    try:
        return transport.round_status("t", 1).assigned == 1
    except NotFound:
        return False


def start_host(twins: Twins) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.embedding_host", str(twins.folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_trainer(
    host: subprocess.Popen[str], other_than: psutil.Process | None
) -> psutil.Process:
    """Return the training process of a host, once it has one, and another one than before."""
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = [
            child
            for child in psutil.Process(host.pid).children()
            if child != other_than and "edge_sdk.agent.trainer" in " ".join(child.cmdline())
        ]
        return bool(found)

    wait_for(look, 60)
    return found[0]
