"""One background thread that closes rounds when they are due."""

from __future__ import annotations

import logging
import threading

from server.coordinator import Coordinator

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0


class Closer:
    """Looks at the rounds every ``tick_s``, and at once when woken.

    Args:
        coordinator: Knows the rounds.
        wake: Set by whoever has news.
        tick_s: Seconds between two looks; doubled while looks fail, up to a minute.
    """

    def __init__(self, coordinator: Coordinator, wake: threading.Event, tick_s: float) -> None:
        self._coordinator = coordinator
        self._wake = wake
        self._tick_s = tick_s
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="closer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread finish the round it is at, and wait for it."""
        self._is_stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s = self._tick_s
        while not self._is_stopping:
            if self._look():
                pause_s = self._tick_s
            else:
                pause_s = min(2 * pause_s, max(_LONGEST_PAUSE_S, self._tick_s))
            self._wake.wait(pause_s)
            self._wake.clear()

    def _look(self) -> bool:
        """Advance every round; a failing one does not hold up the others."""
        try:
            due = self._coordinator.unfinished()
        except Exception:
            log.exception("the rounds cannot be read")
            return False
        failures = [key for key in due if not self._advance(*key)]
        return not failures

    def _advance(self, task: str, number: int) -> bool:
        if self._is_stopping:
            return True
        try:
            self._coordinator.advance(task, number)
        except Exception:
            log.exception("round %d of %s cannot be closed now", number, task)
            return False
        return True
