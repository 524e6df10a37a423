import asyncio

import pytest
from fastapi import Request

from edge_sdk.errors import MalformedMessage, ServerBusy, TooLarge
from server import limits
from server.limits import DrainRefused, bounded_chunks


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
    with pytest.raises(ServerBusy, match="no byte"):
        read(Sender(b"abc", stalls=True), 5)


def drained_by(status: int, sender: Sender, reads_itself: bool = False) -> list[dict]:
    """Run the middleware around an application that answers with this status."""
    sent = []

    async def app(scope, receive, send):
        while reads_itself and (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append((message, sender.taken))

    asyncio.run(DrainRefused(app)({"type": "http"}, sender, send))
    return sent


def test_a_refused_body_is_read_to_its_end_before_the_answer():
    sent = drained_by(403, Sender(b"a", b"b", b"c"))
    assert sent[0][1] == 3


def test_a_body_that_was_read_or_is_not_refused_is_left_alone():
    assert drained_by(403, Sender(b"a", b"b"), reads_itself=True)[-1][1] == 2
    assert drained_by(200, Sender(b"a", b"b"))[-1][1] == 0


def test_draining_ends_at_its_bounds(monkeypatch):
    monkeypatch.setattr(limits, "_DRAIN_BYTES", 3)
    assert drained_by(403, Sender(b"ab", b"cd", b"ef", b"gh"))[0][1] == 2
    monkeypatch.setattr(limits, "_DRAIN_S", 0.05)
    monkeypatch.setattr(limits, "_DRAIN_BYTES", 100)
    assert len(drained_by(403, Sender(b"ab", stalls=True))) == 2
