"""A real server on a port of its own, in a thread of the test process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from server.app import create_app
from server.serving import make_config
from server.settings.settings import Settings


@contextmanager
def live_server(settings: Settings, clock=time.time) -> Iterator[str]:
    """Serve as ``edge-server serve`` would until the block ends; yields the address."""
    config = make_config(create_app(settings, clock), settings)
    config.host, config.port = "127.0.0.1", 0
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 30
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        scheme = "https" if settings.tls_certificate else "http"
        yield f"{scheme}://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
