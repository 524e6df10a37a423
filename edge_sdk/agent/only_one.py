"""One agent per state folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

from edge_sdk.errors import AlreadyRunning, StorageError
from edge_sdk.files.file_lock import try_lock, wait_for_lock

_FILE = "agent.lock"
_WAIT_S = 0.3
"""Longer than :func:`is_agent_running` holds the lock, to see whether it can."""


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
            state_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file: IO[str] = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{state_folder} cannot be written: {error}") from error
        try:
            wait_for_lock(self._file, _WAIT_S)
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
            try_lock(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        pid = path.read_text(encoding="utf-8").strip()
        return f" (process {pid})" if pid.isdigit() else ""
    return ""
