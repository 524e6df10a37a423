"""Bodies are bounded before and while they are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from edge_sdk.errors import MalformedMessage, ServerBusy, TooLarge

_IDLE_S = 60.0
_MAX_DIGITS = 18


async def bounded_chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield a request body, refusing it as soon as it is known to be too large.

    Args:
        request: Whose body was not touched yet.
        limit: Bytes it may have.

    Raises:
        TooLarge: Announced or sent more than ``limit``.
        ServerBusy: The sender stood still for a minute.
    """
    _check_length(_announced_length(request), limit)
    received = 0
    stream = request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), _IDLE_S)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise ServerBusy(
                f"no byte of the body came for {_IDLE_S:.0f} s: send it again"
            ) from None
        received += len(chunk)
        _check_length(received, limit)
        yield chunk


def _announced_length(request: Request) -> int:
    text = request.headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise MalformedMessage(f"Content-Length is {text!r}; it must be a number of bytes")
    return int(text)


def _check_length(size_bytes: int, limit: int) -> None:
    if size_bytes > limit:
        raise TooLarge(f"the body has {size_bytes} bytes or more; this request may have {limit}")


class BoundedJsonRoute(APIRoute):
    """A route that bounds its JSON body by the setting ``max_json_bytes``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler so that it sees a body already read within the limit."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_bounded(request: Request) -> Response:
            limit = request.app.state.settings.max_json_bytes
            body = b"".join([chunk async for chunk in bounded_chunks(request, limit)])
            return await handle(Request(request.scope, _replay(body)))

        return handle_bounded


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
