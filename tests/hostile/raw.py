"""Plain bytes to a server and back: what no HTTP library would send."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from urllib.parse import urlsplit


def connect(url: str, timeout_s: float = 20.0) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=timeout_s)


def head(method: str, path: str, token: str | None = None, *headers: str) -> bytes:
    """Return a request's header."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def status_of(connection: socket.socket) -> int | None:
    """Read until the status of an answer is known; None if the server only closed."""
    said = b""
    while b"\r\n" not in said:
        piece = connection.recv(4096)
        if not piece:
            return None
        said += piece
    return int(said.split(b" ", 2)[1])


def push(url: str, request: bytes, body: Iterable[bytes] = ()) -> int | None:
    """Send a request and as much of a body as the server takes; return the status of its answer."""
    with connect(url) as connection:
        connection.sendall(request)
        try:
            for piece in body:
                connection.sendall(piece)
        except (ConnectionError, TimeoutError):
            pass  # it has heard enough
        try:
            return status_of(connection)
        except ConnectionError:
            return None


def drip(connection: socket.socket, piece: bytes, every_s: float, at_most_s: float) -> float:
    """Send a piece now and then until the server answers or closes; return how long it took."""
    started = time.monotonic()
    connection.settimeout(every_s)
    while (spent_s := time.monotonic() - started) < at_most_s:
        try:
            connection.sendall(piece)
            connection.recv(1, socket.MSG_PEEK)
            return spent_s
        except ConnectionError:
            return spent_s
        except TimeoutError:
            continue
    return spent_s
