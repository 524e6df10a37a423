"""A memory limit the kernel itself enforces: a control group of one's own, version 1 or 2."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from types import TracebackType

_MOUNT = Path("/sys/fs/cgroup")
_REMOVAL_PATIENCE_S = 5.0


class MemoryCgroup:
    """A control group that kills what exceeds its limit; gone at the end.

    Args:
        limit_bytes: Of all memory charged to its processes.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        is_v1 = (_MOUNT / "memory").is_dir()
        parent = _MOUNT / "memory" if is_v1 else _MOUNT
        self._folder = parent / f"edge-sdk-bench-{uuid.uuid4().hex[:8]}"
        self._limit_name = "memory.limit_in_bytes" if is_v1 else "memory.max"
        self._events_name = "memory.oom_control" if is_v1 else "memory.events"
        self._peak_name = "memory.max_usage_in_bytes" if is_v1 else "memory.peak"

    def __enter__(self) -> MemoryCgroup:
        try:
            self._folder.mkdir()
            (self._folder / self._limit_name).write_text(str(self._limit_bytes))
        except OSError as error:
            raise SystemExit(
                f"a memory control group cannot be created here ({error}): run this benchmark as "
                "root, or where control groups are delegated"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        given_up = time.monotonic() + _REMOVAL_PATIENCE_S
        while True:
            try:
                self._folder.rmdir()
                return
            except OSError:  # the kernel still counts a process that has just ended
                if time.monotonic() > given_up:
                    raise
                time.sleep(0.05)

    def enter(self) -> None:
        """Put the calling process into the group; its children follow."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def kills(self) -> int:
        """Return how many processes the kernel killed for want of memory."""
        for line in (self._folder / self._events_name).read_text().splitlines():
            name, value = line.split()
            if name == "oom_kill":
                return int(value)
        return 0

    def peak_bytes(self) -> int:
        """Return the most memory that was charged to the group, file cache included."""
        return int((self._folder / self._peak_name).read_text())
