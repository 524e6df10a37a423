"""Notice that this process uses more memory than its budget, where nothing can prevent it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

import psutil

from edge_sdk.errors import OutOfMemory
from edge_sdk.quantities import format_bytes

_LOG = logging.getLogger(__name__)


def resident_bytes() -> int:
    """Return the resident memory of this process, libraries and mapped files included."""
    return int(psutil.Process().memory_info().rss)


class RssWatchdog:
    """Samples resident memory in a thread while it is entered; ``check()`` tells what it saw.

    A peak shorter than the period can pass unseen, and the system may kill the process before
    the next check: this is the fallback where allocations cannot be refused.

    Args:
        budget_bytes: Memory this process may use in total, libraries included.
        resident: Returns the bytes in use now.
        period_s: Seconds between two samples.
    """

    def __init__(
        self,
        budget_bytes: int,
        *,
        resident: Callable[[], int] = resident_bytes,
        period_s: float = 0.05,
    ) -> None:
        self._budget_bytes = budget_bytes
        self._resident = resident
        self._period_s = period_s
        self._peak_bytes = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RssWatchdog:
        self._peak_bytes = 0
        self.check()
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="memory-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Say whether the budget was exceeded since the last check, or is now.

        Raises:
            OutOfMemory: It was; the next check starts afresh.
        """
        peak, self._peak_bytes = max(self._peak_bytes, self._resident()), 0
        if peak > self._budget_bytes:
            raise over_budget(peak, self._budget_bytes)

    def _watch(self) -> None:
        try:
            while not self._stop.wait(self._period_s):
                self._peak_bytes = max(self._peak_bytes, self._resident())
        except Exception:  # the thread ends here; every check still samples on its own
            _LOG.exception("the memory watchdog stopped")


def over_budget(used_bytes: int, budget_bytes: int) -> OutOfMemory:
    """Say that this process uses more than it may."""
    return OutOfMemory(
        f"this process uses {format_bytes(used_bytes)} of its memory budget of "
        f"{format_bytes(budget_bytes)}: take a smaller plan or a larger budget",
        used_bytes,
        budget_bytes,
    )
