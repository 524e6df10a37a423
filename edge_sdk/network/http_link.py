"""One HTTP request and its answer: timeouts, short retries, the pace, status to exception."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from edge_sdk.errors import (
    ConfigError,
    EdgeError,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
    TooLarge,
    WireError,
    by_code,
)
from edge_sdk.network.bandwidth import Bandwidth, PacedBody
from edge_sdk.network.circuit_breaker import CircuitBreaker
from edge_sdk.network.link import LinkMeter
from edge_sdk.network.short_retries import short_retries
from edge_sdk.network.store_upload import without_password
from edge_sdk.wire.messages import Problem, decode_message

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 16
_DEFAULT_RETRY_AFTER_S = 5.0
_NO_SERVER_BEHIND = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)
_COME_BACK = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)


@dataclass(slots=True)
class Download:
    """What came of one body so far; a part that is asked for goes behind it.

    Attributes:
        body: Its first bytes.
        etag: Of the body they are from; empty if the server did not say.
    """

    body: bytearray = field(default_factory=bytearray)
    etag: str = ""


class HttpLink:
    """The way to one server; every failure is a typed error.

    Outages of seconds are bridged here, with full jitter; requests are idempotent, so a reply
    that was lost does no harm. Long ones are the caller's: meanwhile a circuit breaker keeps
    requests from being sent. After a failure every connection is made anew, so that the name of
    a server that moved is looked up again. The proxies of the environment are used; a password
    in ``.netrc`` is not.

    Args:
        base: Address of the server, without a slash at its end.
        retries: Attempts after the first one, for refused connections and 502, 503, 504.
        up: The way up.
        down: The way down.

    Attributes:
        meter: Measures the link.
        breaker: Says whether the server is being left alone.

    Raises:
        ConfigError: The address is none.
    """

    def __init__(self, base: str, retries: int, up: Bandwidth, down: Bandwidth) -> None:
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"server address {base!r} must look like http://host:port")
        self._base = base
        self._up, self._down = up, down
        self.session = requests.Session()
        self.session.auth = without_password
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=short_retries(retries)))
        self.meter = LinkMeter()
        self.breaker = CircuitBreaker()

    @property
    def timeouts_s(self) -> tuple[float, float]:
        """Seconds for a connection, or for the link to take a few more KiB; and for an answer."""
        return CONNECT_TIMEOUT_S, READ_TIMEOUT_S

    def exchange(
        self,
        method: str,
        path: str,
        body: bytes | memoryview | None,
        headers: Mapping[str, str],
        limit: int,
        into: Download,
    ) -> Mapping[str, str]:
        """Send a request; the answer's body takes the place of what is there, or follows it.

        Args:
            method: Of HTTP.
            path: Below the address of the server.
            body: To send.
            headers: To send.
            limit: Bytes the whole body may have that is received.
            into: Gets it.

        Raises:
            ServerUnreachable: No answer, or not all of it; what came stays in ``into``.
            TooLarge: The answer has more than ``limit`` bytes.
            EdgeError: The server refused, as its problem says.
        """
        self.breaker.check()
        started = time.perf_counter()
        try:
            with self.session.request(
                method,
                self._base + path,
                data=PacedBody(body, self._up) if body else None,
                headers=dict(headers),
                timeout=self.timeouts_s,
                stream=True,
                allow_redirects=False,
            ) as response:
                is_good = 200 <= response.status_code < 300
                content = into.body if is_good else bytearray()
                if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                    content.clear()
                if is_good:
                    into.etag = response.headers.get("ETag", "")
                had = len(content)
                self._read(response, limit, content)
        except requests.RequestException as error:
            self.breaker.fail()
            self.session.close()
            raise ServerUnreachable(
                f"no answer from {self._base} ({type(error).__name__}): is the server running "
                "and reachable from here?"
            ) from error
        if not is_good:
            self._note(response.status_code)
            raise _as_error(response.status_code, response.headers, bytes(content))
        self.breaker.succeed()
        self.meter.add(len(body or b""), len(content) - had, time.perf_counter() - started)
        return response.headers

    def _read(self, response: requests.Response, limit: int, content: bytearray) -> None:
        """Append a body, but never to more than ``limit`` bytes."""
        for chunk in response.iter_content(_CHUNK_BYTES):
            self._down.take(len(chunk))
            content += chunk
            if len(content) > limit:
                raise TooLarge(f"the server sent more than the {limit} bytes this answer may have")

    def _note(self, status: int) -> None:
        if status in _NO_SERVER_BEHIND:
            self.breaker.fail()
            self.session.close()
        else:
            self.breaker.succeed()


def _as_error(status: int, headers: Mapping[str, str], content: bytes) -> EdgeError:
    """Return the exception the server raised, rebuilt from its problem body."""
    retry_after_s = _seconds(headers.get("Retry-After"))
    try:
        problem = decode_message(Problem, content)
    except WireError:
        what = f"HTTP {status} without a readable reason"
        if status in _NO_SERVER_BEHIND:
            return ServerUnreachable(f"{what}: a proxy on the way does not reach the server")
        if status in _COME_BACK:
            return ServerBusy(f"{what}: come back later", retry_after_s=retry_after_s)
        return ServerFailed(f"{what}; is this an edge-server?")
    kind = by_code().get(problem.code, ServerFailed)
    if issubclass(kind, ServerBusy):
        return kind(problem.detail, retry_after_s=retry_after_s)
    return kind(problem.detail)


def _seconds(header: str | None) -> float:
    """Return how long ``Retry-After`` asks to wait: a number of seconds, or a date."""
    if not header:
        return _DEFAULT_RETRY_AFTER_S
    if header.strip().isdecimal():
        return float(header)
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return _DEFAULT_RETRY_AFTER_S
    if at.tzinfo is None:
        at = at.replace(tzinfo=timezone.utc)
    return max(0.0, (at - datetime.now(timezone.utc)).total_seconds())
