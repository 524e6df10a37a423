"""Measure every request and its answer, and tell whoever logs or counts them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_sdk.errors import ServerFailed
from server.http import problems

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its answer.

    Attributes:
        method: Of the request, as it came.
        route: Template of the path, such as ``/v1/tasks/{task}``; ``None`` if there is none.
        status: Of the answer; ``None`` if the sender went away before it began.
        seconds: From the request's header to the end of the answer.
        bytes_in: Bytes of the request's body that were read.
        bytes_out: Bytes of the answer's body.
        device_id: The device that asked, once it is known.
    """

    method: str
    route: str | None
    status: int | None
    seconds: float
    bytes_in: int
    bytes_out: int
    device_id: str | None


class Exchanges:
    """Measures, and answers for whatever fails unforeseen inside.

    Args:
        app: What answers the requests.
        observers: Called after each exchange.
    """

    def __init__(self, app: ASGIApp, observers: Sequence[Callable[[Exchange], None]]) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, measured."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        meter = _Meter(receive, send)
        begun = time.perf_counter()
        try:
            await self._app(scope, meter.receive, meter.send)
        except Exception:
            log.exception("the request failed for a reason nobody foresaw")
            if meter.status is None:
                answer = problems.answer(ServerFailed("the server failed; its log says why"))
                await answer(scope, meter.receive, meter.send)
        finally:
            exchange = Exchange(
                method=scope["method"],
                route=getattr(scope.get("route"), "path_format", None),
                status=meter.status,
                seconds=time.perf_counter() - begun,
                bytes_in=meter.bytes_in,
                bytes_out=meter.bytes_out,
                device_id=scope.get("state", {}).get("device_id"),
            )
            for observe in self._observers:
                observe(exchange)


class _Meter:
    """The two ends of one request, with what went through them."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.status: int | None = None
        self.bytes_in = 0
        self.bytes_out = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.bytes_out += len(message.get("body", b""))
        await self._send(message)
