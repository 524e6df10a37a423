"""``edge-server serve``: one uvicorn process until a signal ends it."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
from collections.abc import Callable

import uvicorn

from edge_sdk.errors import ConfigError
from server.app import create_app
from server.auth import has_enrolment_token
from server.settings import Settings
from server.state import open_state

log = logging.getLogger(__name__)

_BACKLOG = 256
_GRACE_S = 10


class _Server(uvicorn.Server):
    """Says when it really answers."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._announce()


def serve(settings: Settings, announce: Callable[[str, int], None]) -> None:
    """Run until SIGTERM or Ctrl-C; requests under way get ten seconds to end.

    Args:
        settings: Of this process.
        announce: Called once with the address and the port, when the server answers.

    Raises:
        ConfigError: The address cannot be listened on.
        StorageError: The state cannot be opened.
    """
    listener = _listen(settings.host, settings.port)
    with listener:
        app = create_app(settings)
        _warn(settings)
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
        server = _Server(config, lambda: announce(_address(settings.host, port), port))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, exit code 0
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            return


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _warn(settings: Settings) -> None:
    if not _is_loopback(settings.host):
        log.warning(
            "listening on %s without TLS: tokens and updates travel readable; put a TLS proxy "
            "in front",
            settings.host,
        )
    store, _ = open_state(settings)
    if not has_enrolment_token(store):
        log.warning(
            "no device can enrol yet; make a token with: edge-server token create --state %s",
            settings.state,
        )
    store.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
