import asyncio

import pytest
from fastapi import Request

from edge_sdk.errors import MalformedMessage, ServerBusy, TooLarge
from server import limits
from server.limits import bounded_chunks


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
