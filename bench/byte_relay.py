"""Forward TCP connections to a server on this machine and count the bytes of both directions."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from types import TracebackType

_CHUNK_BYTES = 1 << 16


class ByteRelay:
    """Stands between devices and their server, as a wire that knows what went over it.

    Bytes pass inside the kernel (``splice``), so it costs next to nothing. A server that is away
    is a connection that is cut.

    Args:
        target: Port on loopback of the server.

    Attributes:
        port: Where devices connect.
        up_bytes: From devices to the server so far, everything above TCP.
        down_bytes: From the server to devices so far.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        self.up_bytes = 0
        self.down_bytes = 0
        self._counting = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> ByteRelay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                device.close()
                continue
            for ends in ((device, server, self._count_up), (server, device, self._count_down)):
                threading.Thread(target=_forward, args=ends, daemon=True).start()

    def _count_up(self, count: int) -> None:
        with self._counting:
            self.up_bytes += count

    def _count_down(self, count: int) -> None:
        with self._counting:
            self.down_bytes += count


def _forward(source: socket.socket, target: socket.socket, count: Callable[[int], None]) -> None:
    read_end, write_end = os.pipe()
    try:
        while taken := os.splice(source.fileno(), write_end, _CHUNK_BYTES):
            count(taken)
            while taken:
                taken -= os.splice(read_end, target.fileno(), taken)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            _cut(end)
    finally:
        os.close(read_end)
        os.close(write_end)


def _cut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
