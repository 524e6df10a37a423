"""HTTP connections that ask for nothing are closed: a header has to come within its time."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_HEADER_S = 20.0
_REST_S = 600.0


class PatientHttp(H11Protocol):
    """uvicorn's HTTP/1.1, with an end to its patience while no request is under way.

    A header must be complete 20 s after the connection opened or the answer before it ended.
    What is left of a body that was refused may take ten minutes: a device that is cut off while
    it sends would not learn why.
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first header."""
        super().connection_made(transport)
        self._wait(_HEADER_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        if self._waiting is not None:
            self._waiting.cancel()

    def on_response_complete(self) -> None:
        """Begin to wait for the next header."""
        is_still_sending = self.conn.their_state is h11.SEND_BODY
        self._wait(_REST_S if is_still_sending else _HEADER_S)
        super().on_response_complete()

    def _wait(self, seconds: float) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(seconds, self._close_if_waiting)

    def _close_if_waiting(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
