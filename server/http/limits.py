"""Bodies are bounded, in bytes and in time, before and while they are read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from edge_sdk.errors import MalformedMessage, TooLarge, TooSlow

_IDLE_S = 60.0
_PATIENCE_S = 30.0
_LEAST_BYTES_PER_S = 1024
_MAX_DIGITS = 18
_GATHERED_BYTES = 1 << 18


async def bounded_chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield a request body, refusing it as soon as it is known to be too large or too slow.

    Args:
        request: Whose body was not touched yet.
        limit: Bytes it may have.

    Raises:
        TooLarge: Announced or sent more than ``limit``.
        TooSlow: Stood still for a minute, or is half a minute behind 1 KiB/s.
    """
    _check_length(announced_bytes(request), limit)
    received = 0
    stream = request.stream()
    waited_s = 0.0
    while True:
        patience_s = max(0.0, _PATIENCE_S + received / _LEAST_BYTES_PER_S - waited_s)
        started = time.monotonic()
        try:
            chunk = await asyncio.wait_for(anext(stream), min(_IDLE_S, patience_s))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise TooSlow(
                f"{received} bytes of the body came while this server waited for "
                f"{waited_s + time.monotonic() - started:.0f} s; it must keep up "
                f"{_LEAST_BYTES_PER_S} bytes/s: send it again"
            ) from None
        waited_s += time.monotonic() - started
        received += len(chunk)
        _check_length(received, limit)
        yield chunk


async def gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in fewer parts, of 256 KiB or more: each costs a change of threads.

    Args:
        chunks: As they come from the network; what came before one fails is not yielded.
    """
    parts: list[bytes] = []
    waiting = 0
    async for chunk in chunks:
        parts.append(chunk)
        waiting += len(chunk)
        if waiting >= _GATHERED_BYTES:
            yield b"".join(parts)
            parts, waiting = [], 0
    if parts:
        yield b"".join(parts)


def announced_bytes(request: Request, default: int = 0) -> int:
    """Return how long a body says it is.

    Args:
        request: Whose body.
        default: What is returned if it does not say.

    Raises:
        MalformedMessage: It says something else.
    """
    text = request.headers.get("content-length", str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise MalformedMessage(f"Content-Length is {text!r}; it must be a number of bytes")
    return int(text)


def _check_length(size_bytes: int, limit: int) -> None:
    if size_bytes > limit:
        raise TooLarge(f"the body has {size_bytes} bytes or more; this request may have {limit}")


class BoundedJsonRoute(APIRoute):
    """A route that bounds its JSON body by the setting ``max_json_bytes``."""

    async def admit(self, request: Request) -> None:
        """Refuse a request before a byte of its body is read; this route refuses none."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler so that it sees a body already read within the limit."""
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            await self.admit(request)
            if self.body_field is None:
                return await handle(request)
            limit = request.app.state.settings.max_json_bytes
            body = b"".join([chunk async for chunk in bounded_chunks(request, limit)])
            return await handle(Request(request.scope, _replay(body)))

        return handle_bounded


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
