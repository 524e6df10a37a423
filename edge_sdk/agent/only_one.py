"""One agent per state folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import IO

from edge_sdk.errors import AlreadyRunning, StorageError

_FILE = "agent.lock"


class OnlyOne:
    """Holds the lock of a state folder from its making to :meth:`release`.

    Args:
        state_folder: Made if need be.

    Raises:
        AlreadyRunning: Another agent holds it.
        StorageError: The folder cannot be written.
    """

    def __init__(self, state_folder: Path) -> None:
        path = state_folder / _FILE
        try:
            state_folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{state_folder} cannot be written: {error}") from error
        try:
            _lock(self._file)
        except OSError as error:
            self._file.close()
            raise AlreadyRunning(
                f"another agent{_holder(path)} works with {state_folder}: stop it, or name another "
                "state folder for a second device"
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let another agent in."""
        self._file.close()


def is_agent_running(state_folder: Path) -> bool:
    """Say whether an agent works with a state folder now; leaves no trace."""
    try:
        with (state_folder / _FILE).open("r+", encoding="utf-8") as file:
            _lock(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 30)  # not where the number is, which others may read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        pid = path.read_text(encoding="utf-8").strip()
        return f" (process {pid})" if pid.isdigit() else ""
    return ""
