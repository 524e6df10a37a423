"""Real device processes that start at once: forked from one that has imported everything.

``python -m tests.faults.forked_device`` reads one JSON object a line, runs ``edge-sdk`` with its
arguments and environment in a process of its own, and says its number, then its exit status. The
progress of a round is kept after every step.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_sdk.rounds.failpoints import VARIABLE


class Devices:
    """Starts device processes, one at a time.

    Args:
        folder: Where they write what they say.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forked_device"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", VARIABLE: ""},
            start_new_session=True,
        )

    def __enter__(self) -> Devices:
        assert self._parent.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._parent.pid, signal.SIGKILL)  # a device that still runs as well
        self._parent.wait(20)
        self._parent.stdin.close()
        self._parent.stdout.close()

    def start(self, *arguments: str, failpoint: str = "") -> Device:
        """Start ``edge-sdk ARGUMENTS`` with one write of the journal armed."""
        self._count += 1
        said = self._folder / f"device-{self._count}.out"
        order = {"arguments": arguments, "failpoint": failpoint, "said": str(said)}
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        return Device(int(self._parent.stdout.readline()), said, self)

    def wait(self) -> int:
        """Return the exit status of the process that was started; negative of a signal."""
        return os.waitstatus_to_exitcode(int(self._parent.stdout.readline()))


class Device:
    """One of these processes."""

    def __init__(self, pid: int, said: Path, devices: Devices) -> None:
        self._pid = pid
        self._said = said
        self._devices = devices

    def kill(self) -> int:
        """``kill -9``; returns the exit status."""
        os.kill(self._pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; returns the exit status."""
        return self._devices.wait()

    def said(self) -> str:
        """Return all it printed."""
        return self._said.read_text(encoding="utf-8")

    def rounds(self) -> list[dict[str, Any]]:
        """Return the rounds it reported."""
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]


def _serve() -> None:
    import torch
    from transformers import AutoTokenizer  # noqa: F401 - or each would import it, in seconds

    from edge_sdk.rounds import journal

    torch.set_num_threads(1)
    journal.PROGRESS_EVERY_S, journal.PROGRESS_SHARE = 0.0, math.inf
    gc.collect()
    gc.freeze()  # what was imported is no garbage: no device looks through it
    _say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_run(order["arguments"], order["failpoint"], order["said"]))
        _say(pid)
        _say(os.waitpid(pid, 0)[1])


def _say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def _run(arguments: Sequence[str], failpoint: str, said: str) -> int:
    from edge_sdk.cli import main

    os.environ[VARIABLE] = failpoint
    with Path(said).open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        status = main(arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    _serve()
