"""``kill -9`` of the server loses no accepted update and does not stop the round."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sdk.errors import ServerUnreachable
from edge_sdk.identity.identity import Identity
from edge_sdk.network.transport import Transport
from tests.numpy_device import NumpyDevice, enrol_one
from tests.processes import ServerProcess

ROUNDS = 2
SKETCH_SIZES = (1, 2, 4)

pytestmark = pytest.mark.processes


@pytest.fixture
def prepared(tmp_path: Path, tiny_llama: Path) -> tuple[Path, list[Identity]]:
    """A state folder with a task and enrolled devices, and their identities."""
    with ServerProcess(tmp_path / "prepared") as server:
        server.command(
            *("task", "create", "t", "--model", str(tiny_llama), "--rank", "4", "--seed", "5"),
            *("--sketch-sizes", "1,2,4", "--rounds", str(ROUNDS), "--cohort-size", "3"),
        )
        secret = server.command("token", "create")["enrolment_token"]
        identities = [enrol_one(server.address, secret, f"d{k}") for k in SKETCH_SIZES]
    return tmp_path / "prepared", identities


def test_server_killed_after_every_request_gives_the_undisturbed_adapter(prepared, tmp_path):
    """The same fleet twice from the same state: once in peace, once killed 18 times."""
    state, identities = prepared
    kills = 0

    def kill(server: ServerProcess) -> None:
        nonlocal kills
        server.kill()
        server.start()
        kills += 1

    digests = {}
    for name, after_request in (("peace", lambda server: None), ("war", kill)):
        shutil.copytree(state, tmp_path / name)
        with ServerProcess(tmp_path / name) as server:
            _run_fleet(server, identities, after_request)
            versions = Transport(server.address, identities[0]).adapters("t")
            digests[name] = [info.digest for info in versions]
    assert kills == ROUNDS * 3 * len(SKETCH_SIZES)
    assert digests["war"] == digests["peace"]
    assert len(set(digests["peace"])) == ROUNDS + 1, "every round moved the adapter"


def test_receipt_is_the_same_after_a_kill_and_the_update_is_counted_once(prepared):
    state, identities = prepared
    with ServerProcess(state) as server:
        device = NumpyDevice(server.address, identities[0], "t", 1)
        work = device.wait_for_work()
        body = device.made_up_update(work, device.fetch(work))
        first = device.submit(work, body)
        server.kill()
        with pytest.raises(ServerUnreachable):
            device.check_in()
        server.start()
        assert device.submit(work, body) == first
        assert device.transport.round_status("t", 1).accepted == 1
        assert device.check_in().state == "wait"


def _run_fleet(
    server: ServerProcess,
    identities: list[Identity],
    after_request: Callable[[ServerProcess], None],
) -> None:
    devices = [
        NumpyDevice(server.address, identity, "t", k)
        for identity, k in zip(identities, SKETCH_SIZES, strict=True)
    ]
    for number in range(1, ROUNDS + 1):
        work, slices = [], []
        for device in devices:
            work.append(device.wait_for_work())
            after_request(server)
        for device, assignment in zip(devices, work, strict=True):
            assert assignment.round_number == number
            slices.append(device.fetch(assignment))
            after_request(server)
        for device, assignment, arrays in zip(devices, work, slices, strict=True):
            device.submit(assignment, device.made_up_update(assignment, arrays))
            after_request(server)
    devices[0].wait_for_version(ROUNDS)
    assert {device.check_in().state for device in devices} == {"finished"}
