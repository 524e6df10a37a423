"""``edge-server serve``: one uvicorn process until a signal ends it."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from edge_sdk.errors import ConfigError
from server.access.auth import has_enrolment_token
from server.app import create_app
from server.heap import share_one_heap
from server.http.patient_http import PatientHttp
from server.operation.health import Health
from server.settings.settings import Settings
from server.storage.store import Store

log = logging.getLogger(__name__)

_BACKLOG = 256
_GRACE_S = 10


class _Server(uvicorn.Server):
    """Says when it really answers, and goes on answering for a while when told to stop.

    Args:
        config: Of uvicorn.
        announce: Called when it answers.
        health: Told at once that the server is stopping.
        drain_s: Seconds until it stops; a second signal does not wait.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        announce: Callable[[], None],
        health: Health,
        drain_s: float,
    ) -> None:
        super().__init__(config)
        self._announce = announce
        self._health = health
        self._drain_s = drain_s
        self._is_draining = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, or begin to: a load balancer that reads /readyz gets time to look elsewhere."""
        self._health.stop()
        if self._is_draining or not self._drain_s:
            super().handle_exit(sig, frame)
            return
        self._is_draining = True
        timer = threading.Timer(self._drain_s, self._end_draining, (sig, frame))
        timer.daemon = True
        timer.start()

    def _end_draining(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:  # a second signal was faster
            super().handle_exit(sig, frame)


def serve(settings: Settings, announce: Callable[[str, int], None]) -> None:
    """Run until SIGTERM or Ctrl-C; then ``drain_s`` more, and ten seconds to end requests.

    Args:
        settings: Of this process.
        announce: Called once with the address and the port, when the server answers.

    Raises:
        ConfigError: The address cannot be listened on, or the certificate cannot be used.
        StorageError: The state cannot be opened.
    """
    share_one_heap()
    listener = _listen(settings.host, settings.port)
    with listener:
        app = create_app(settings)
        _warn(settings, app.state.store)
        port = listener.getsockname()[1]
        server = _Server(
            make_config(app, settings),
            lambda: announce(_address(settings, port), port),
            app.state.health,
            settings.drain_s,
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, exit code 0
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            return


def make_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Return how uvicorn serves an application: its TLS, and whose forwarded headers it believes.

    Raises:
        ConfigError: The certificate or its key cannot be used.
    """
    config = uvicorn.Config(
        app,
        http=PatientHttp,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=list(settings.forwarded_allow_ips),
        ssl_certfile=_expanded(settings.tls_certificate),
        ssl_keyfile=_expanded(settings.tls_key),
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the certificate {settings.tls_certificate} with the key {settings.tls_key} cannot be "
            f"used: {error}; both must be PEM files, and belong together"
        ) from error
    return config


def _expanded(path: str) -> str | None:
    return str(Path(path).expanduser()) if path else None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _address(settings: Settings, port: int) -> str:
    scheme = "https" if settings.tls_certificate else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{port}"


def _warn(settings: Settings, store: Store) -> None:
    if not (_is_loopback(settings.host) or settings.tls_certificate):
        log.warning(
            "listening on %s without TLS: tokens and updates travel readable; name "
            "a certificate with --tls-certificate and --tls-key, or put a TLS proxy in front",
            settings.host,
        )
    if not has_enrolment_token(store, time.time()):
        log.warning(
            "no device can enrol yet: run 'edge-server token create' with this server's settings"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
