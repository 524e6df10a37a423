"""Watch the memory of a server's processes while a benchmark runs."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import psutil

_EVERY_S = 0.1


class ServerWatch:
    """Adds up what a process and all it started hold, ten times a second.

    Args:
        pid: Of the server.

    Attributes:
        samples: Seconds since 1970, and bytes.
    """

    def __init__(self, pid: int) -> None:
        self._server = psutil.Process(pid)
        self._is_over = threading.Event()
        self.samples: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ServerWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def peak_bytes(self, until: float = float("inf")) -> int:
        """Return the most that was held up to a moment."""
        return max((held for at, held in self.samples if at <= until), default=0)

    def _watch(self) -> None:
        while not self._is_over.wait(_EVERY_S):
            try:
                processes = [self._server, *self._server.children(recursive=True)]
            except psutil.Error:
                continue
            self.samples.append((time.time(), held_bytes(processes)))


def held_bytes(processes: list[psutil.Process]) -> int:
    """Return the resident memory of processes that belong together.

    The private pages of each, and once the shared pages of the one that has the most: adding up
    RSS would count the libraries they share several times. Of one process it is the RSS.
    """
    private, shared = 0, 0
    for process in processes:
        try:
            memory = process.memory_full_info()
        except psutil.Error:
            continue
        private += memory.uss
        shared = max(shared, memory.rss - memory.uss)
    return private + shared
