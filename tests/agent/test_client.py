"""The embedded agent: real training processes, started, paused, killed and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from edge_sdk.agent import supervisor
from edge_sdk.agent.policy import Policy
from edge_sdk.agent.status import read_status
from edge_sdk.client import EdgeClient
from edge_sdk.errors import AlreadyRunning, ConfigError
from edge_sdk.network.enrolment import join
from tests.agent.scripted import cpu_s, create_task, wait_for_status, wait_for_training
from tests.numpy_device import wait_for
from tests.processes import ServerProcess

ROOT = Path(__file__).parent.parent.parent
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="uses the kernel's death signal")
pytestmark = pytest.mark.processes


def test_a_task_is_finished_in_the_background_and_every_round_is_told(
    server, tiny_llama, long_task, tmp_path
):
    task = create_task(server, tiny_llama, long_task.data, tmp_path / "short", local_steps=5)
    events = []
    with task.client(on_event=events.append) as client:
        status = client.wait(120)
    assert status.state == "finished", status
    assert status.rounds_counted == 1
    assert status.uploaded_bytes > 1000
    assert status.downloaded_bytes > 1000
    assert 1000 < status.update_bytes <= status.uploaded_bytes
    assert [x.facts["counted"] for x in events if x.kind == "round"] == [True]
    states = [x.status.state for x in events if x.kind == "state"]
    assert states[0] == "starting"
    assert states[-1] == "finished"
    assert read_status(task.state) == status


def test_pause_stops_the_processor_within_a_second_and_resume_goes_on_in_the_same_round(long_task):
    with long_task.client() as client:
        before = wait_for_training(client)
        client.pause()
        client.pause()
        time.sleep(1.0)
        paused = client.status()
        assert (paused.state, paused.rules, paused.pid) == ("paused", ("app",), before.pid)
        used_s = cpu_s(before.pid)
        time.sleep(0.5)
        assert cpu_s(before.pid) == used_s
        client.resume()
        client.resume()
        after = wait_for_status(client, lambda x: x.state == "training" and x.step > paused.step, 5)
        assert (after.pid, after.round_number) == (before.pid, before.round_number)


def test_a_killed_trainer_is_reported_and_started_again(long_task):
    events = []
    with long_task.client(on_event=events.append) as client:
        first = wait_for_training(client)
        os.kill(first.pid, signal.SIGKILL)
        wait_for_status(client, lambda x: x.crashes == 1)
        again = wait_for_training(client)
        assert again.pid != first.pid
    (failure,) = [x for x in events if x.kind == "failure"]
    assert "signal 9" in failure.message


def test_start_and_stop_may_be_called_by_many_threads_and_leave_nothing_behind(long_task):
    client = long_task.client()
    threads = [threading.Thread(target=client.start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pid = wait_for_status(client, lambda x: x.pid is not None).pid
    threads = [threading.Thread(target=client.stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.status().state == "stopped"
    assert not psutil.pid_exists(pid)
    client.start()
    assert wait_for_status(client, lambda x: x.pid is not None).pid != pid
    client.stop()


def test_a_callback_that_raises_harms_nothing(long_task, caplog):
    def fail(event):
        raise RuntimeError("a mistake of the app")

    with long_task.client(on_event=fail) as client:
        wait_for_training(client)
    assert "on_event failed" in caplog.text


def test_two_agents_do_not_share_a_state_folder(long_task):
    with long_task.client(), pytest.raises(AlreadyRunning, match=str(os.getpid())):
        long_task.client().start()
    again = long_task.client()
    again.start()
    again.stop()


def test_data_that_is_missing_is_an_error_at_once_and_data_that_is_bad_a_failure_in_the_status(
    long_task, tmp_path
):
    with pytest.raises(ConfigError, match="training data"):
        EdgeClient(state_folder=tmp_path).start()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("this is not JSON\n")
    with long_task.client(data=bad) as client:
        status = client.wait(120)
    assert status.state == "failed"
    assert "bad.jsonl" in status.reasons[0]


def test_what_an_errand_cannot_do_is_the_error_it_was_there(
    long_task, server, tiny_llama, tmp_path
):
    create_task(server, tiny_llama, long_task.data, tmp_path / "other", local_steps=5)
    client = long_task.client(task=None)
    with pytest.raises(ConfigError, match=r"the server has \d+ tasks .*: name one of them"):
        client.use_newest()
    with pytest.raises(ConfigError, match="name one of them"):
        client.generate("what is")
    assert client.status().state == "stopped"


def test_a_trainer_that_keeps_dying_is_given_up_and_the_status_says_how_it_died(
    long_task, monkeypatch
):
    monkeypatch.setattr(supervisor, "_FIRST_WAIT_S", 0.01)
    events, killed = [], {None}
    with long_task.client(on_event=events.append) as client:
        while (status := client.status()).state != "failed":
            if status.pid not in killed:
                killed.add(status.pid)
                os.kill(status.pid, signal.SIGKILL)
            assert len(killed) <= supervisor.MOST_FAILURES + 1
            time.sleep(0.02)
    assert status.crashes == supervisor.MOST_FAILURES
    assert "signal 9" in status.reasons[0]
    assert [x.kind for x in events].count("failure") == supervisor.MOST_FAILURES


def test_a_server_that_is_away_is_named_in_the_status_and_waited_for(
    tiny_llama, long_task, tmp_path
):
    with ServerProcess(tmp_path / "server") as server:
        task = create_task(server, tiny_llama, long_task.data, tmp_path / "away", local_steps=10**5)
        join(task.state, server.address, task.token, "away")
        server.kill()
        with task.client() as client:
            away = wait_for_status(client, lambda x: x.state == "retrying", 60)
            assert f"no answer from {server.address}" in away.reasons[0]
            server.start()
            assert wait_for_training(client).reasons == ()


def test_a_long_pause_gives_the_memory_back(long_task):
    with long_task.client(policy=replace(Policy.always(), keeps_memory_s=0.5)) as client:
        before = wait_for_training(client)
        client.pause()
        wait_for_status(client, lambda x: x.pid is None, 5)
        assert not psutil.pid_exists(before.pid)
        assert client.status().crashes == 0


HOST = """
    import sys, time
    from edge_sdk import Allowance, EdgeClient, Policy
    client = EdgeClient(
        server={address!r}, task={task!r}, enrolment_token={token!r}, data={data!r},
        state_folder={state!r}, policy=Policy.always(),
        allowance=Allowance(threads=1, quantization="fp32"),
    )
    client.start()
    while client.status().step == 0:
        time.sleep(0.05)
    pid = client.status().pid
    {then}
    heavy = [name for name in ("torch", "numpy", "requests") if name in sys.modules]
    print(pid, *heavy, flush=True)
    time.sleep(60)
"""


@linux_only
@pytest.mark.parametrize("then", ["pass", "client.pause(); time.sleep(1)"], ids=["busy", "paused"])
def test_a_host_that_is_killed_leaves_no_trainer_and_had_nothing_heavy_in_it(long_task, then):
    script = textwrap.dedent(HOST).format(
        address=long_task.server.address,
        task=long_task.name,
        token=long_task.token,
        data=str(long_task.data),
        state=str(long_task.state),
        then=then,
    )
    host = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        words = host.stdout.readline().split()
    finally:
        host.kill()
        host.communicate()
    assert len(words) == 1, words
    wait_for(lambda: not psutil.pid_exists(int(words[0])), 5)
