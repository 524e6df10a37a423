"""Locks on open files that end with the process that holds them, on every system."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import IO, Any

_LOOK_EVERY_S = 0.05


def try_lock(file: IO[Any]) -> None:
    """Lock a file for this process alone.

    Raises:
        OSError: Another one has it.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 30)  # not where anything is, which others may read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_for_lock(file: IO[Any], at_most_s: float = float("inf")) -> None:
    """Lock a file as soon as nobody else has it.

    Raises:
        OSError: Another one had it all the time.
    """
    end = time.monotonic() + at_most_s
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError, PermissionError):
            return try_lock(file)
        time.sleep(_LOOK_EVERY_S)
    try_lock(file)
