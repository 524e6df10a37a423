"""Ways to take away, for a while, what a server stands on."""

from __future__ import annotations

import resource
import select
import shlex
import signal
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import psutil
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from tests.numpy_device import wait_for


class CrashingDatabase:
    """A PostgreSQL server on this machine that a test crashes and starts again.

    Args:
        address: Of any of its databases. Whoever started it finds it ended.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        folder = Path(self._ask("SHOW data_directory"))
        self._command = shlex.split((folder / "postmaster.opts").read_text())
        self._first = psutil.Process(int((folder / "postmaster.pid").read_text().split()[0]))
        uid, gid = self._first.uids().real, self._first.gids().real
        is_other = uid != psutil.Process().uids().real
        self._owner = {"user": uid, "group": gid, "extra_groups": []} if is_other else {}
        self._folder = folder
        self._second: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> CrashingDatabase:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._second is not None:
            self._second.send_signal(signal.SIGINT)
            self._second.wait(20)

    @property
    def processes(self) -> list[psutil.Process]:
        """The server and its sessions."""
        return [*self._first.children(recursive=True), self._first]

    def crash(self) -> None:
        """End it and every session at once, without writing anything down."""
        self._first.send_signal(signal.SIGQUIT)
        self._first.wait(20)

    def start(self) -> None:
        """Start it again as it was started; it recovers by itself."""
        self._second = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            **self._owner,
        )
        wait_for(self._answers)

    def _answers(self) -> bool:
        try:
            return self._ask("SELECT 1") == 1
        except OperationalError:
            return False

    def _ask(self, question: str) -> str:
        engine = create_engine(self._address)
        try:
            with engine.connect() as connection:
                return connection.exec_driver_sql(question).scalar_one()
        finally:
            engine.dispose()


class Gate:
    """A port in front of a service on this machine, that can be shut and opened again.

    Args:
        port: Of the service.
    """

    def __init__(self, port: int) -> None:
        gate = self

        class Passage(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if not gate.is_shut:
                    with socket.create_connection(("127.0.0.1", port)) as behind:
                        gate._pass_on(self.request, behind)

        self.is_shut = False
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Passage)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    @contextmanager
    def in_place(self) -> Iterator[Gate]:
        """Let connections through until the end of the block."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.is_shut = True
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Break every connection, and every new one, until the end of the block."""
        self.is_shut = True
        try:
            yield
        finally:
            self.is_shut = False

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        others = {one: other, other: one}
        while not self.is_shut:
            ready, _, _ = select.select([one, other], [], [], 0.05)
            for end in ready:
                try:
                    chunk = end.recv(1 << 16)
                    others[end].sendall(chunk)
                except OSError:
                    return
                if not chunk:
                    return


@contextmanager
def standing_still(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """Freeze processes wherever they are until the end of the block."""
    frozen = list(processes)
    for process in frozen:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in reversed(frozen):
            with suppress(psutil.NoSuchProcess):
                process.resume()


@contextmanager
def no_room_for(pid: int) -> Iterator[None]:
    """Refuse a process every byte it writes to a file, as a full disk does."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
