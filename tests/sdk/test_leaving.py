"""Leaving a fleet: the server refuses the device, and its machine forgets all but itself."""

from __future__ import annotations

import json
import threading

import pytest

from edge_sdk.agent.only_one import OnlyOne, is_agent_running
from edge_sdk.cli import main
from edge_sdk.errors import AlreadyRunning, Revoked
from edge_sdk.identity.identity import load_identity
from edge_sdk.network.enrolment import join
from edge_sdk.network.transport import Transport
from server.access.auth import make_enrolment_token
from server.settings.settings import Settings
from tests.contract.live import live_server
from tests.server.tasks import Site

LEFTOVERS = ("status.json", "serving.json", "link.json", "agent.log", "agent.1.log")
FOLDERS = ("journal/1", "adapters/words", "adapter", "residuals")


@pytest.fixture
def site(tmp_path):
    found = Site(tmp_path / "server")
    yield found
    found.store.close()


@pytest.fixture
def state(site, tmp_path):
    """A device that has joined and been at work; its server answers while the test lasts."""
    folder = tmp_path / "device"
    with live_server(Settings(state=site.settings.state)) as url:
        join(folder, url, make_enrolment_token(site.store, 0.0), "old phone")
        for name in (*LEFTOVERS, "calibration.json"):
            (folder / name).write_text("{}")
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)
            (folder / name / "file").write_text("x")
        yield folder


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_device_that_left_is_refused_and_only_what_the_machine_measured_stays(
    site, state, capsys
):
    identity = load_identity(state)
    assert main(["leave", "--state", str(state)]) == 0
    assert f"has left {identity.server}" in capsys.readouterr().out
    assert left_in(state) == ["agent.lock", "calibration.json"]
    with pytest.raises(Revoked):
        Transport(identity.server, identity).tasks()
    assert main(["leave", "--state", str(state)]) == 0
    assert capsys.readouterr().out == "this device had joined no server\n"


def test_without_its_server_a_device_forgets_and_says_what_the_operator_can_do(state, capsys):
    identity = json.loads((state / "device.json").read_text())
    (state / "device.json").write_text(json.dumps({**identity, "server": "http://127.0.0.1:1"}))
    assert main(["leave", "--state", str(state)]) == 0
    said = capsys.readouterr().out
    assert "could not be told: no answer from http://127.0.0.1:1" in said
    assert f"edge-server device revoke {identity['device_id']}" in said
    assert left_in(state) == ["agent.lock", "calibration.json"]


def test_nobody_leaves_while_an_agent_is_at_work(state, capsys):
    agent = OnlyOne(state)
    assert main(["leave", "--state", str(state)]) == 1
    assert "another agent" in capsys.readouterr().err
    assert (state / "device.json").exists()
    agent.release()


def test_a_look_at_the_lock_keeps_no_agent_out(tmp_path):
    """Others look again and again while agents come and go."""
    stop = threading.Event()

    def look():
        while not stop.is_set():
            is_agent_running(tmp_path)

    watchers = [threading.Thread(target=look) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(50):
            OnlyOne(tmp_path).release()
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()


def test_a_second_agent_is_kept_out(tmp_path):
    agent = OnlyOne(tmp_path)
    with pytest.raises(AlreadyRunning):
        OnlyOne(tmp_path)
    agent.release()


def test_the_state_of_a_device_is_for_its_user_alone(tmp_path):
    OnlyOne(tmp_path / "state").release()
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
