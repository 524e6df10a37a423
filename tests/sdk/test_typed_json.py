"""Typed JSON is decoded safely from many threads at once."""

from __future__ import annotations

import subprocess
import sys

_RACE = """
import sys
import threading

from edge_sdk.wire import messages, task
from tests.server.tasks import tiny_spec

body = messages.encode_message(tiny_spec())
sys.setswitchinterval(1e-6)
start = threading.Barrier(8)


def decode():
    start.wait()
    assert messages.decode_message(task.TaskSpec, body) == tiny_spec()


threads = [threading.Thread(target=decode) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_meet_a_message_first_and_together_do_not_crash_the_process():
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", _RACE], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
