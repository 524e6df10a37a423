"""Keep training within its memory budget, and out of the way of the owner's own programs."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

import psutil

from edge_sdk.errors import MemoryPressure, OutOfMemory
from edge_sdk.memory.heap import release_freed_memory
from edge_sdk.memory.watchdog import RssWatchdog
from edge_sdk.quantities import format_bytes
from edge_sdk.sensors.cgroups import MemoryLimit, cgroup_limits

_FLOOR_BYTES = 256 << 20
_FLOOR_SHARE, _LARGEST_FLOOR_SHARE = 0.05, 0.125
_POLL_S = 0.5
_SIGNS = (
    "can't allocate memory",  # torch's allocator on a CPU; "not enough memory" on Windows
    "not enough memory",
    "DefaultCPUAllocator",
    "Cannot allocate memory",  # errno 12 as text, from mmap in a library
    "std::bad_alloc",
    "bad allocation",
    "out of memory",  # CUDA, bitsandbytes
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    # A Jetson has no memory counters in NVML, and torch asks it while it reports a lack of memory.
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
)


class BudgetLimit(Protocol):
    """What holds a process to its budget between ``__enter__`` and ``__exit__``."""

    def __enter__(self) -> object:
        """Begin; raises OutOfMemory if the budget is spent already."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End, and leave nothing behind."""

    def check(self) -> None:
        """Look again; raises OutOfMemory if the budget is exceeded."""


def choose_limit(budget_bytes: int) -> BudgetLimit:
    """Return the strictest limit this system can hold: refused allocations, else a watchdog."""
    if sys.platform == "linux":
        from edge_sdk.memory.data_limit import DataLimit, is_enforced

        if is_enforced():
            return DataLimit(budget_bytes)
    return RssWatchdog(budget_bytes)


def free_memory() -> int:
    """Return the bytes free now on this device, in the control groups of this process.

    Limits on the process alone have no say: one of them is the guard's own.
    """
    return min([int(psutil.virtual_memory().available), *(x.available_bytes for x in _limits())])


def default_floor_bytes(total_bytes: int) -> int:
    """Return what training leaves free: 5 % of all memory, at least 256 MiB.

    With less the kernel evicts the programs the owner looks at, and at 10 % and no swap the
    usual early killers act. On a small board 256 MiB would be most of what is free after
    starting, so it is never more than an eighth.
    """
    wanted = max(_FLOOR_BYTES, int(total_bytes * _FLOOR_SHARE))
    return min(wanted, int(total_bytes * _LARGEST_FLOOR_SHARE))


class MemoryGuard:
    """Holds this process to a memory budget while it is entered; may be entered repeatedly.

    Enter it when the libraries are imported and their thread pools run, before the model loads:
    an import or a pool that finds no memory breaks beyond repair. Check it after loading, then
    between steps. Of guards in one another, check the inner one.

    Args:
        budget_bytes: Memory this process may use in total, libraries included.
        available: Returns the bytes free on the device now.
        floor_bytes: Below this, training pauses; None takes :func:`default_floor_bytes`.
        patience_s: Longest pause in seconds.
        on_pause: Called after a pause that ended well, with its seconds.
        limit: What enforces the budget; None takes :func:`choose_limit`.
        clock: Seconds that never go back.
        sleep: Waits that many seconds.
    """

    def __init__(
        self,
        budget_bytes: int,
        *,
        available: Callable[[], int] = free_memory,
        floor_bytes: int | None = None,
        patience_s: float = 300.0,
        on_pause: Callable[[float], None] | None = None,
        limit: BudgetLimit | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limit = choose_limit(budget_bytes) if limit is None else limit
        self._available = available
        self._floor_bytes = _floor_of_this_device() if floor_bytes is None else floor_bytes
        self._patience_s = patience_s
        self._on_pause = on_pause
        self._clock = clock
        self._sleep = sleep
        self._depth = 0

    def __enter__(self) -> MemoryGuard:
        """Begin to enforce the budget.

        Raises:
            OutOfMemory: This process already uses more.
        """
        if self._depth == 0:
            self._limit.__enter__()
        self._depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._limit.__exit__(kind, error, traceback)

    def check(self) -> None:
        """Between two training steps: hold the budget, and pause while the owner needs memory.

        Raises:
            OutOfMemory: This process uses more than its budget.
            MemoryPressure: The device stayed short of memory for all of the patience.
        """
        self._limit.check()
        if self._available() >= self._floor_bytes:
            return
        release_freed_memory()
        waited_s = self._wait_for_memory()
        if waited_s > 0 and self._on_pause is not None:
            self._on_pause(waited_s)

    def _wait_for_memory(self) -> float:
        started, waited_s = self._clock(), 0.0
        while (free := self._available()) < self._floor_bytes:
            left_s = self._patience_s - waited_s
            if left_s <= 0:
                raise MemoryPressure(
                    f"{format_bytes(free)} of memory stayed free on this device after a pause of "
                    f"{waited_s:.0f} s, {format_bytes(self._floor_bytes)} must be left to its "
                    "owner: train later, or take a smaller plan",
                    self._floor_bytes,
                    free,
                )
            self._sleep(min(_POLL_S, left_s))
            waited_s = self._clock() - started
        return waited_s


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is a failed allocation, or names one as its cause.

    Libraries have no common exception for it: a CPU allocation of torch fails with a bare
    ``RuntimeError``. torch need not be imported, and is not.
    """
    if isinstance(error, (MemoryError, OutOfMemory)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    if isinstance(error, (RuntimeError, OSError)) and any(sign in str(error) for sign in _SIGNS):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def _floor_of_this_device() -> int:
    total = min([int(psutil.virtual_memory().total), *(x.limit_bytes for x in _limits())])
    return default_floor_bytes(total)


def _limits() -> list[MemoryLimit]:
    return cgroup_limits(Path("/"))
