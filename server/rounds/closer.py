"""One background thread that closes rounds when they are due."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from server.rounds.coordinator import Coordinator

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rest:
    """How long a round is left alone that could not be closed; ``until`` by the steady clock."""

    until: float
    pause_s: float


class Closer:
    """Looks at the rounds every ``tick_s``, and at once when woken.

    Args:
        coordinator: Knows the rounds.
        wake: Set by whoever has news.
        tick_s: Seconds between two looks; a round that cannot be closed is left alone for twice
            as long after every failure, up to a minute.
    """

    def __init__(self, coordinator: Coordinator, wake: threading.Event, tick_s: float) -> None:
        self._coordinator = coordinator
        self._wake = wake
        self._tick_s = tick_s
        self._is_stopping = False
        self._resting: dict[tuple[str, int], _Rest] = {}
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
        while not self._is_stopping:
            self._look()
            self._wake.wait(self._tick_s)
            self._wake.clear()

    def _look(self) -> None:
        """Advance every round that is not resting; a failing one does not hold up the others."""
        try:
            due = self._coordinator.unfinished()
        except Exception:
            log.exception("the rounds cannot be read")
            return
        self._resting = {key: rest for key, rest in self._resting.items() if key in due}
        for key in due:
            rest = self._resting.get(key)
            if not self._is_stopping and (rest is None or rest.until <= time.monotonic()):
                self._advance(key)

    def _advance(self, key: tuple[str, int]) -> None:
        task, number = key
        try:
            self._coordinator.advance(task, number)
            self._resting.pop(key, None)
        except Exception:
            rest = self._resting[key] = _longer(self._resting.get(key), self._tick_s)
            text = "round %d of %s cannot be closed now; next try in %.0f s"
            log.exception(text, number, task, rest.pause_s)


def _longer(before: _Rest | None, tick_s: float) -> _Rest:
    pause_s = 2 * before.pause_s if before else 2 * tick_s
    pause_s = min(pause_s, max(_LONGEST_PAUSE_S, tick_s))
    return _Rest(until=time.monotonic() + pause_s, pause_s=pause_s)
