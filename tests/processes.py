"""Real server and device processes that tests start, kill and start again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from server.failpoints import VARIABLE
from tests.forked_server import ForkedServer

_UNHURRIED = {
    "EDGE_SERVER_DEVICE_REQUESTS_PER_MIN": "1000000",
    "EDGE_SERVER_ENTRANCE_REQUESTS_PER_MIN": "1000000",
}
"""Devices of tests ask far more often than real ones."""


class ServerProcess:
    """An ``edge-server serve`` over one state, on one port, however often it is killed.

    Args:
        state: Its folder.
        port: To listen on; by default any free one, and always the same.
        environment: Settings beside these, such as ``EDGE_SERVER_DATABASE_URL``.
    """

    def __init__(
        self, state: Path, port: int | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.state = state
        self.port = port or _free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.environment = {**_UNHURRIED, **(environment or {})}
        self._process: ForkedServer | None = None

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._end(signal.SIGTERM)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_died(self) -> bool:
        """Say whether the process ended by itself, as at a failpoint."""
        return self._process.has_ended

    def start(self, failpoint: str = "") -> ServerProcess:
        """Start serving and wait until it answers; a failpoint is armed for this start only."""
        self._process = ForkedServer(
            ["serve", "--json", "--state", str(self.state), "--port", str(self.port)],
            {**os.environ, **self.environment, VARIABLE: failpoint},
        )
        line = self._process.first_line()
        if not line or json.loads(line)["url"] != self.address:
            self._end(signal.SIGKILL)
            raise AssertionError(f"the server said {line!r}")
        try:
            assert requests.get(f"{self.address}/healthz", timeout=20).ok
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            if not failpoint:  # which may kill the server in the middle of this answer
                raise
        return self

    def kill(self) -> None:
        """``kill -9``: nothing gets a chance to tidy up."""
        self._end(signal.SIGKILL)

    def command(self, *words: str) -> dict[str, Any]:
        """Run one ``edge-server`` command on the same state and return its JSON."""
        process = ForkedServer(
            [*words, "--state", str(self.state), "--json"], {**os.environ, **self.environment}
        )
        said = process.all_lines()
        assert said, f"edge-server {' '.join(words)} failed: its error is above"
        return json.loads(said)

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        self._process = None
        process.end(how)


def run_json(
    module: str, *words: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run ``python -m module WORDS --json`` and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def start_device(*words: str, program: Sequence[str] = ("edge_sdk",)) -> subprocess.Popen[str]:
    """Start ``edge-sdk run --json WORDS``, or a program that wraps it, in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", *program, "run", "--now", "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
