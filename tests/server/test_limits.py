import asyncio
import time

import pytest
from fastapi import Request

from edge_sdk.errors import MalformedMessage, TooLarge, TooSlow
from server.http import limits
from server.http.limits import bounded_chunks, gathered


class Sender:
    """The receiving end of a request whose body comes in the given pieces."""

    def __init__(self, *pieces: bytes, stalls: bool = False) -> None:
        self._pieces = list(pieces)
        self._stalls = stalls
        self.taken = 0

    async def __call__(self):
        if not self._pieces and self._stalls:
            await asyncio.sleep(3600)
        piece = self._pieces.pop(0) if self._pieces else b""
        self.taken += 1
        return {
            "type": "http.request",
            "body": piece,
            "more_body": bool(self._pieces) or self._stalls,
        }


def request(sender: Sender, **headers: str) -> Request:
    raw = [
        (name.replace("_", "-").encode(), value.encode("latin-1"))
        for name, value in headers.items()
    ]
    return Request({"type": "http", "method": "PUT", "path": "/", "headers": raw}, sender)


def read(sender: Sender, limit: int, **headers: str) -> bytes:
    async def collect():
        return b"".join(
            [chunk async for chunk in bounded_chunks(request(sender, **headers), limit)]
        )

    return asyncio.run(collect())


def test_a_body_of_exactly_the_limit_is_read_whole():
    assert read(Sender(b"abc", b"de"), 5, content_length="5") == b"abcde"


def test_a_body_announced_too_large_is_refused_before_a_byte_is_read():
    sender = Sender(b"abcdef")
    with pytest.raises(TooLarge, match="6 bytes"):
        read(sender, 5, content_length="6")
    assert sender.taken == 0


def test_an_unannounced_body_is_refused_as_soon_as_it_is_too_large():
    sender = Sender(b"abc", b"def", b"ghi", b"jkl")
    with pytest.raises(TooLarge):
        read(sender, 5)
    assert sender.taken == 2


@pytest.mark.parametrize("length", ["-1", "five", "9" * 19, "9" * 5000, "\u00b2"])
def test_a_length_that_is_no_number_of_bytes_is_malformed(length):
    with pytest.raises(MalformedMessage):
        asyncio.run(anext(bounded_chunks(request(Sender(), content_length=length), 5)))


def test_a_sender_that_stands_still_is_let_go(monkeypatch):
    monkeypatch.setattr(limits, "_IDLE_S", 0.05)
    started = time.monotonic()
    with pytest.raises(TooSlow, match="3 bytes"):
        read(Sender(b"abc", stalls=True), 5)
    assert time.monotonic() - started < limits._PATIENCE_S / 2, "not only because it is behind"


class Dripping(Sender):
    """Sends one piece every ``pause_s``."""

    def __init__(self, pieces: list[bytes], pause_s: float) -> None:
        super().__init__(*pieces)
        self._pause_s = pause_s

    async def __call__(self):
        await asyncio.sleep(self._pause_s)
        return await super().__call__()


def test_a_sender_that_drips_is_let_go_though_it_never_stands_still(monkeypatch):
    """One byte now and then keeps no connection and no memory for long."""
    monkeypatch.setattr(limits, "_PATIENCE_S", 0.1)
    sender = Dripping([b"x"] * 1000, 0.01)
    with pytest.raises(TooSlow, match="1024 bytes/s"):
        read(sender, 5000)
    assert sender.taken < 50


def test_a_sender_that_keeps_up_the_least_rate_is_read_to_its_end(monkeypatch):
    monkeypatch.setattr(limits, "_PATIENCE_S", 0.1)
    assert len(read(Dripping([b"x" * 100] * 20, 0.01), 5000)) == 2000


def test_the_time_the_server_itself_takes_is_not_held_against_a_sender(monkeypatch):
    monkeypatch.setattr(limits, "_PATIENCE_S", 0.1)

    async def consume():
        async for _chunk in bounded_chunks(request(Sender(b"a", b"b", b"c")), 5):
            await asyncio.sleep(0.1)

    asyncio.run(consume())


def test_gathered_chunks_are_the_same_bytes_in_fewer_parts():
    pieces = [bytes([i]) * 100_000 for i in range(7)]

    async def read_all() -> list[bytes]:
        chunks = bounded_chunks(request(Sender(*pieces)), 10**6)
        return [part async for part in gathered(chunks)]

    parts = asyncio.run(read_all())
    assert b"".join(parts) == b"".join(pieces)
    assert [len(part) for part in parts] == [300_000, 300_000, 100_000]
