"""Count what this process refuses devices, by reason, in memory of a fixed size."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from fastapi import Request

from edge_sdk.errors import EdgeError
from server.operation.overview_messages import Refusal

_MOST_CHARACTERS = 300
_MOST_NAME_CHARACTERS = 63


class Refusals:
    """One line for each code of error, with the latest case.

    Args:
        clock: Seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._by_code: dict[str, Refusal] = {}
        self.started_at = clock()

    def note(self, task: str, error: EdgeError) -> None:
        """Count one refused request."""
        latest = Refusal(
            code=error.code,
            count=1,
            task=task[:_MOST_NAME_CHARACTERS],
            detail=str(error)[:_MOST_CHARACTERS],
            at=self._clock(),
        )
        with self._lock:
            before = self._by_code.get(error.code)
            self._by_code[error.code] = replace(latest, count=before.count + 1 if before else 1)

    def lines(self) -> list[Refusal]:
        """Return one line for each code, most frequent first."""
        with self._lock:
            return sorted(self._by_code.values(), key=lambda line: (-line.count, line.code))


async def note_refusal(request: Request) -> AsyncIterator[None]:
    """Count the request if anything after this dependency refuses it."""
    try:
        yield
    except EdgeError as error:
        request.app.state.refusals.note(str(request.path_params.get("task", "")), error)
        raise
