"""An ``edge-server serve`` in a process of its own, and what it uses of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import requests

_SAMPLE_EVERY_S = 0.05
_GRACE_S = 30.0


class WatchedServer:
    """A server whose resident memory is looked at every 50 ms while the block lasts.

    Args:
        state: Its folder.
        settings: Beside its defaults, as environment variables ``EDGE_SERVER_...``.

    Attributes:
        address: Where it answers.
        peak_rss_bytes: The most that any look found.
        ready_after_s: From the start of its process to the answer that it is ready.
    """

    def __init__(self, state: Path, settings: Mapping[str, str]) -> None:
        self._state = state
        self._environment = {**os.environ, **settings}
        self._stopping = threading.Event()
        self.address = ""
        self.peak_rss_bytes = 0
        self.ready_after_s = 0.0

    def __enter__(self) -> WatchedServer:
        started = time.perf_counter()
        command = [sys.executable, "-m", "server", "serve", "--json", "--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--state", str(self._state)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment,
        )
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._end()
            raise SystemExit("the server did not start")
        self.address = str(json.loads(line)["url"])
        requests.get(f"{self.address}/readyz", timeout=_GRACE_S).raise_for_status()
        self.ready_after_s = time.perf_counter() - started
        self._watched = psutil.Process(self._process.pid)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._watcher.join()
        self._end()

    @property
    def rss_bytes(self) -> int:
        """Resident memory now."""
        return int(self._watched.memory_info().rss)

    @property
    def cpu_s(self) -> float:
        """Processor time used so far, of the process and of the system for it."""
        used = self._watched.cpu_times()
        return float(used.user + used.system)

    def kill(self) -> None:
        """``kill -9``: nothing gets a chance to tidy up."""
        self._stopping.set()
        self._watcher.join()
        self._process.kill()
        self._process.wait()

    def _watch(self) -> None:
        while not self._stopping.wait(_SAMPLE_EVERY_S):
            self.peak_rss_bytes = max(self.peak_rss_bytes, self.rss_bytes)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def server_command(state: Path, *words: str) -> dict[str, Any]:
    """Run one ``edge-server`` command on a state and return its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "server", *words, "--state", str(state), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"edge-server {' '.join(words)}: {done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
