"""The training process as its agent sees it: started, suspended, resumed, killed, listened to."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

_MOST_LOG_BYTES = 1 << 20
_QUIET_OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
_LAST_WORDS_S = 2.0
_IS_POSIX = os.name == "posix"


class Child:
    """A running training process.

    Args:
        settings: Its first line, see :mod:`edge_sdk.agent.trainer`; may hold a secret, so it is in
            no argument and no environment variable.
        log_file: Takes what the process and its libraries print; the one before is kept once.

    Attributes:
        is_suspended: Whether it stands still.
        has_begun: Whether it has spoken: from then on it ends with this process, suspended or not.
    """

    def __init__(self, settings: dict[str, Any], log_file: Path) -> None:
        _make_room(log_file)
        descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edge_sdk.agent.trainer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**_QUIET_OPENMP, **os.environ},
                start_new_session=_IS_POSIX,  # suspended and killed as one, and not by Ctrl-C
            )
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._seen = psutil.Process(self._process.pid)
        self.is_suspended = False
        self.has_begun = False
        line = json.dumps({**settings, "parent_pid": os.getpid()}).encode() + b"\n"
        with contextlib.suppress(OSError):  # it died at once: its end says why
            assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
            self._process.stdin.write(line)
            self._process.stdin.flush()
        self._listener = threading.Thread(target=self._listen, name="edge-sdk events", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.poll()

    @property
    def rss_bytes(self) -> int:
        """Resident memory; 0 once it is gone."""
        try:
            return int(self._seen.memory_info().rss)
        except psutil.Error:
            return 0

    @property
    def cpu_s(self) -> float:
        """Processor seconds used so far; 0 once it is gone."""
        try:
            used = self._seen.cpu_times()
        except psutil.Error:
            return 0.0
        return float(used.user + used.system + used.children_user + used.children_system)

    def events(self, *, is_last: bool) -> list[dict[str, Any]]:
        """Return what was told since the last call; the last time, all that is left."""
        if is_last:
            self._listener.join(_LAST_WORDS_S)
        told = []
        with contextlib.suppress(queue.Empty):
            while True:
                told.append(self._events.get_nowait())
        return told

    def suspend(self) -> None:
        """Stop it where it is, in the middle of whatever it does."""
        self._signal("SIGSTOP", "suspend")
        self.is_suspended = True

    def resume(self) -> None:
        """Let it go on."""
        self._signal("SIGCONT", "resume")
        self.is_suspended = False

    def kill(self) -> None:
        """End it at once, and free its memory."""
        self._signal("SIGKILL", "kill")
        self._process.wait()

    def close(self) -> None:
        """Forget a process that has ended."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _signal(self, posix: str, elsewhere: str) -> None:
        """Reach the process and those it started."""
        with contextlib.suppress(OSError, psutil.Error):
            if _IS_POSIX:
                os.killpg(self._process.pid, getattr(signal, posix))
            else:
                for one in (self._seen, *self._seen.children(recursive=True)):
                    getattr(one, elsewhere)()

    def _listen(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - a pipe was asked for
        with contextlib.suppress(ValueError, OSError):  # closed meanwhile
            for line in stdout:
                with contextlib.suppress(ValueError):
                    told = json.loads(line)
                    if isinstance(told, dict):
                        self.has_begun = True
                        self._events.put(told)


def _make_room(log_file: Path) -> None:
    with contextlib.suppress(OSError):
        if log_file.stat().st_size > _MOST_LOG_BYTES:
            log_file.replace(log_file.with_suffix(".1.log"))
