"""One background thread that removes tensor files nothing needs any more."""

from __future__ import annotations

import logging
import threading

from server.operation.collecting import Collecting

log = logging.getLogger(__name__)

_FIRST_AFTER_S = 300.0


class Collector:
    """Collects every ``every_s``, for the first time after five minutes at the latest.

    Args:
        collecting: Knows what to remove.
        every_s: Seconds between two looks.
    """

    def __init__(self, collecting: Collecting, every_s: float) -> None:
        self._collecting = collecting
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread finish the step it is at, and wait for it."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s = min(_FIRST_AFTER_S, self._every_s)
        while not self._stopping.wait(pause_s):
            pause_s = self._every_s
            try:
                self._collecting.collect(self._stopping.is_set)
            except Exception:
                log.exception("tensor files cannot be collected now")
