"""A real HTTP proxy in front of a real server that does to requests what bad networks do."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_PIECE = 1 << 14
_BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbad"


@dataclass(kw_only=True)
class Fault:
    """What happens to some requests; without arguments, nothing.

    Attributes:
        path: End of the paths it is for, without the query.
        times: How many of them.
        delay_s: Before the request is passed on.
        bytes_per_s: Pace, both ways.
        cut_up: The connection is cut after so many bytes of the request's body.
        cut_down: The same, of the answer's body.
        is_reset: The connection is reset before anything is passed on.
        is_refused: 502, without asking the server.
        is_lost: The server gets it, the device is cut off instead of answered.
        is_twice: The server gets it twice, and the device the second answer.
        is_late: The device is cut off; the server gets it after a later request of the device.
    """

    path: str = ""
    times: int = 1
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    cut_up: int | None = None
    cut_down: int | None = None
    is_reset: bool = False
    is_refused: bool = False
    is_lost: bool = False
    is_twice: bool = False
    is_late: bool = False

    def strikes(self, path: str) -> bool:
        """Say whether this request is one of them, and count it."""
        if self.times < 1 or not path.partition("?")[0].endswith(self.path):
            return False
        self.times -= 1
        return True


@dataclass
class Request:
    """One request as it came."""

    head: bytes
    body: bytes = b""

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    def header(self, name: str) -> str:
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return ""

    @property
    def forwarded(self) -> bytes:
        """The head for the server: its own form of the target, one request per connection."""
        first, *lines = self.head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, version = first.split(" ")
        if "://" in target:
            target = "/" + target.split("/", 3)[3]
        dropped = ("connection:", "proxy-", "keep-alive:")
        kept = [line for line in lines if not line.lower().startswith(dropped)]
        return "\r\n".join(
            [f"{method} {target} {version}", *kept, "Connection: close\r\n\r\n"]
        ).encode("latin-1")


@dataclass
class Proxy:
    """Passes requests on to one server, one at a time per connection.

    Attributes:
        port: Of the server.
        faults: What shall happen; the first one that strikes does.
        seen: Targets of the requests, in order.
        passwords: The ``Proxy-Authorization`` of them.
        up_bytes: Bytes of bodies that came from devices.
        down_bytes: Bytes of bodies that devices were sent.
        cut_up_at: Every connection is cut when ``up_bytes`` gets there, once.
    """

    port: int
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)
    up_bytes: int = 0
    down_bytes: int = 0
    cut_up_at: int | None = None
    address: str = ""
    _late: list[Request] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError, EOFError):
                await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = Request(await reader.readuntil(b"\r\n\r\n"))
        self.seen.append(request.target)
        self.passwords.append(request.header("proxy-authorization"))
        fault = next((f for f in self.faults if f.strikes(request.target)), Fault())
        if fault.is_reset:
            return _reset(writer)
        if not await self._take(request, reader, fault):
            return _reset(writer)
        await asyncio.sleep(fault.delay_s)
        if fault.is_refused:
            writer.write(_BAD_GATEWAY)
            return await writer.drain()
        if fault.is_late:
            self._late.append(request)
            return _reset(writer)
        answer = await self._pass_on(request)
        if fault.is_twice:
            answer = await self._pass_on(request)
        late, self._late = self._late, []
        for earlier in late:
            await self._pass_on(earlier)
        if fault.is_lost:
            return _reset(writer)
        await self._give(answer, writer, fault)

    async def _take(self, request: Request, reader: asyncio.StreamReader, fault: Fault) -> bool:
        """Read the body; return False where the connection shall be cut."""
        left = int(request.header("content-length") or 0)
        body = bytearray()
        while left:
            piece = await reader.read(min(_PIECE, left))
            if not piece:
                raise EOFError
            body += piece
            left -= len(piece)
            self.up_bytes += len(piece)
            if fault.bytes_per_s:
                await asyncio.sleep(len(piece) / fault.bytes_per_s)
            if self.cut_up_at is not None and self.up_bytes >= self.cut_up_at:
                self.cut_up_at = None
                return False
            if fault.cut_up is not None and len(body) >= fault.cut_up:
                return False
        request.body = bytes(body)
        return True

    async def _pass_on(self, request: Request) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request.forwarded + request.body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    async def _give(self, answer: bytes, writer: asyncio.StreamWriter, fault: Fault) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        stop = len(body) if fault.cut_down is None else min(fault.cut_down, len(body))
        for start in range(0, stop, _PIECE):
            piece = body[start : min(start + _PIECE, stop)]
            writer.write(piece)
            await writer.drain()
            self.down_bytes += len(piece)
            if fault.bytes_per_s:
                await asyncio.sleep(len(piece) / fault.bytes_per_s)


@contextmanager
def proxy_to(port: int, host: str = "127.0.0.1", own_port: int = 0) -> Iterator[Proxy]:
    """Pass requests on to a server on this machine until the block ends."""
    proxy, loop = Proxy(port), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(proxy.handle, host, own_port))
    proxy.address = f"http://{host}:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Let the other end see a reset, not an end."""
    link = writer.get_extra_info("socket")
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
