"""A server that is told to stop, and goes on for a while so that nobody is turned away."""

import json
import signal
import subprocess
import sys
import time

import pytest
import requests


@pytest.fixture
def start(tmp_path):
    """Start a server that drains for so many seconds; returns the process and its address."""
    processes = []

    def run(drain_s):
        words = ["--state", tmp_path / "state", "--port", 0, "--drain-s", drain_s, "--json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "serve", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, json.loads(process.stdout.readline())["url"]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.processes
def test_a_draining_server_answers_and_says_that_it_is_not_ready_and_then_ends(start):
    process, url = start(drain_s=1.5)
    assert requests.get(f"{url}/readyz", timeout=10).status_code == 200
    told_at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    while (answer := requests.get(f"{url}/readyz", timeout=10)).status_code == 200:
        assert time.monotonic() < told_at + 1.5
    assert (answer.status_code, answer.json()["code"]) == (503, "server_busy")
    assert "stopping" in answer.json()["detail"]
    assert requests.get(f"{url}/healthz", timeout=10).status_code == 200
    assert process.wait(20) == 0
    assert time.monotonic() - told_at >= 1.5


@pytest.mark.processes
def test_a_second_signal_ends_the_draining(start):
    process, url = start(drain_s=300)
    process.send_signal(signal.SIGTERM)
    until = time.monotonic() + 20
    while requests.get(f"{url}/readyz", timeout=10).status_code == 200:
        assert time.monotonic() < until
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
