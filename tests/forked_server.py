"""Real server processes that start at once: forked from one that has imported everything.

``python -m tests.forked_server`` reads one JSON object a line, runs ``edge-server`` with its
arguments and environment in a process of its own, and says its number. Such a process is killed
and lost like any other; only the interpreter and the imports are there already.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_PATIENCE_S = 60.0
_LOOK_EVERY_S = 0.01


class ForkedServer:
    """One of these processes.

    Args:
        words: Arguments of ``edge-server``.
        environment: All of it.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        descriptor, name = tempfile.mkstemp(prefix="edge-server-said-")
        os.close(descriptor)
        self._said = Path(name)
        parent = _parent()
        order = {"words": list(words), "environment": dict(environment), "said": name}
        parent.stdin.write(json.dumps(order) + "\n")
        parent.stdin.flush()
        self.pid = int(parent.stdout.readline())

    @property
    def has_ended(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def first_line(self) -> str:
        """Return what it printed first; empty if it ended without a word."""
        end = time.monotonic() + _PATIENCE_S
        while not (said := self._said.read_text(encoding="utf-8")).endswith("\n"):
            if self.has_ended or time.monotonic() > end:
                return said
            time.sleep(_LOOK_EVERY_S)
        return said.splitlines()[0]

    def all_lines(self) -> str:
        """Return all it printed until it ended by itself."""
        self._await_end("the end of its work")
        said = self._said.read_text(encoding="utf-8")
        self._said.unlink()
        return said

    def end(self, how: signal.Signals) -> None:
        """Send a signal and wait until the process is gone."""
        if not self.has_ended:
            os.kill(self.pid, how)
        self._await_end(how.name)
        self._said.unlink()

    def _await_end(self, after: str) -> None:
        end = time.monotonic() + _PATIENCE_S
        while not self.has_ended:
            assert time.monotonic() < end, f"{self.pid} outlives {after}"
            time.sleep(_LOOK_EVERY_S)


@cache
def _parent() -> subprocess.Popen[str]:
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.forked_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(os.killpg, parent.pid, signal.SIGKILL)  # a server that still runs as well
    assert parent.stdout.readline() == "ready\n"
    return parent


def _serve() -> None:
    import gc

    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a process that has ended is gone at once
    _say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_run(order["words"], order["environment"], order["said"]))
        _say(pid)


def _say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def _run(words: Sequence[str], environment: Mapping[str, str], said: str) -> int:
    from server.__main__ import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["edge-server", *words]
    with Path(said).open("wb") as stream:
        os.dup2(stream.fileno(), 1)
    try:
        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    _serve()
