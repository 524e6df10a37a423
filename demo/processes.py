"""Start the demo's processes and make sure that none outlives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import Any

from edge_sdk.errors import EdgeError

STOP_GRACE_S = 5.0


class ProcessFailed(EdgeError):
    """A process of the demo ended with an error."""

    code = "process_failed"


class Processes:
    """A group of child processes that ends with the ``with`` block, however that ends.

    Args:
        logs: Folder for the standard error of each process.
        threads: CPU threads each process may use.
    """

    def __init__(self, logs: Path, threads: int) -> None:
        self._logs = logs
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait starve the others
            "HF_HUB_OFFLINE": "1",
        }
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._readers: list[threading.Thread] = []
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for reader in self._readers:
            reader.join()
        for process in self._running.values():
            if process.stdout:
                process.stdout.close()

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start ``python -m COMMAND`` in the background; its log is ``logs/NAME.log``."""
        with (self._logs / f"{name}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop the others
            )
        self._running[name] = process
        return process

    def follow(self, name: str, events: Queue[tuple[str, dict[str, Any] | None]]) -> None:
        """Put every JSON line of a process on a queue, then None when it ends."""
        reader = threading.Thread(target=self._read, args=(name, events))
        self._readers.append(reader)
        reader.start()

    def _read(self, name: str, events: Queue[tuple[str, dict[str, Any] | None]]) -> None:
        stream = self._running[name].stdout
        for line in stream or ():
            events.put((name, json.loads(line)))
        events.put((name, None))

    def first_line(self, name: str) -> dict[str, Any]:
        """Wait for the first JSON line a process prints."""
        stream = self._running[name].stdout
        line = stream.readline() if stream else ""
        if not line:
            self.check(name)
        return _as_object(line)

    def check(self, name: str) -> None:
        """Raise if a process has ended, or ends now, with anything but success.

        Raises:
            ProcessFailed: With the end of its log.
        """
        status = self._running[name].wait()
        if status != 0:
            raise ProcessFailed(f"{name} ended with status {status}: {self._log_end(name)}")

    def run(self, name: str, command: Sequence[str], extra: Mapping[str, str] | None = None) -> Any:
        """Run one process to its end and return the JSON it printed."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            env={**self._environment, **(extra or {})},
            check=False,
        )
        (self._logs / f"{name}.log").write_text(done.stderr, encoding="utf-8")
        if done.returncode != 0:
            raise ProcessFailed(
                f"{name} ended with status {done.returncode}: {self._log_end(name)}"
            )
        return _as_object(done.stdout)

    def _log_end(self, name: str) -> str:
        path = self._logs / f"{name}.log"
        lines = path.read_text(encoding="utf-8").strip().splitlines()
        return f"{lines[-1] if lines else 'no message'} (all of it in {path})"


def _as_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ProcessFailed(f"expected a JSON object, got {text[:80]!r}")
    return value
