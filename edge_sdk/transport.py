"""One HTTP exchange with the server: timeouts, retries, identity, status to exception."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

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
from edge_sdk.link import LinkMeter
from edge_sdk.wire.messages import (
    AdapterInfo,
    AdapterSpec,
    CheckIn,
    CheckInReply,
    Enrolment,
    EnrolRequest,
    Problem,
    Receipt,
    RoundStatus,
    TaskSpec,
    check_protocol,
    decode_message,
    encode_message,
)
from edge_sdk.wire.payload import MEDIA_TYPE, body_limit, check_content_digest, content_digest

MAX_JSON_BYTES = 4 << 20
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 16

Answer = TypeVar("Answer")


class Transport:
    """The server's endpoints as methods; every failure is a typed error.

    Short outages are retried here with jittered back-off; requests are idempotent, so a reply
    that was lost does no harm.

    Args:
        server: Base address, ``http://`` or ``https://``.
        device_token: Sent as a bearer token; None before enrolment.
        retries: Attempts after the first one, for refused connections and 502, 503, 504.

    Attributes:
        uploaded_bytes: Request bodies sent so far, each counted once.
        downloaded_bytes: Response bodies received so far.
        meter: Measures the link on them.
    """

    def __init__(self, server: str, device_token: str | None = None, retries: int = 3) -> None:
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"server address {server!r} must look like http://host:port")
        self._base = server.rstrip("/")
        self._session = requests.Session()
        if device_token is not None:
            self._session.headers["Authorization"] = f"Bearer {device_token}"
        retry = Retry(
            total=retries,
            backoff_factor=0.3,
            backoff_jitter=0.3,
            status_forcelist=(502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
            respect_retry_after_header=True,
        )
        self._session.mount("http://", HTTPAdapter(max_retries=retry))
        self._session.mount("https://", HTTPAdapter(max_retries=retry))
        self.uploaded_bytes = 0
        self.downloaded_bytes = 0
        self.meter = LinkMeter()

    def enrol(self, enrolment_token: str, name: str) -> Enrolment:
        """Let the server give this device an identity."""
        request = EnrolRequest(enrolment_token=enrolment_token, name=name)
        return self._json(Enrolment, "POST", "/v1/enrol", encode_message(request))

    def tasks(self) -> list[str]:
        """Return the names of the server's tasks."""
        return self._json(list[str], "GET", "/v1/tasks")

    def task(self, name: str) -> TaskSpec:
        """Return what a task trains and how."""
        task = self._json(TaskSpec, "GET", f"/v1/tasks/{_part(name)}")
        check_protocol(task.protocol)
        return task

    def check_in(self, task: str, message: CheckIn) -> CheckInReply:
        """Say that this device is ready, and get work, a time to come back, or the end."""
        path = f"/v1/tasks/{_part(task)}/check-in"
        return self._json(CheckInReply, "POST", path, encode_message(message))

    def round_status(self, task: str, round_number: int) -> RoundStatus:
        """Return the state of one round."""
        return self._json(RoundStatus, "GET", f"/v1/tasks/{_part(task)}/rounds/{round_number}")

    def slice_body(self, task: TaskSpec, round_number: int, k: int) -> bytes:
        """Fetch the k columns and rows this device trains, as checked bytes."""
        path = f"/v1/tasks/{_part(task.name)}/rounds/{round_number}/slice"
        return self._tensors(path, task.adapter, k)

    def submit(self, task: str, round_number: int, body: bytes) -> Receipt:
        """Send an update; when this returns, the server will count it exactly once."""
        path = f"/v1/tasks/{_part(task)}/rounds/{round_number}/update"
        headers = {"Content-Type": MEDIA_TYPE, "Content-Digest": content_digest(body)}
        return self._json(Receipt, "PUT", path, body, headers)

    def adapters(self, task: str) -> list[AdapterInfo]:
        """Return the versions of the global adapter, oldest first."""
        return self._json(list[AdapterInfo], "GET", f"/v1/tasks/{_part(task)}/adapters")

    def adapter_body(self, task: TaskSpec, version: int) -> bytes:
        """Fetch one version of the global adapter at full rank, as checked bytes."""
        path = f"/v1/tasks/{_part(task.name)}/adapters/{version}"
        return self._tensors(path, task.adapter, task.adapter.r)

    def _json(
        self,
        kind: type[Answer],
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent = {"Content-Type": "application/json", **(headers or {})} if body else {}
        content, _ = self._exchange(method, path, body, sent, MAX_JSON_BYTES)
        return decode_message(kind, content)

    def _tensors(self, path: str, adapter: AdapterSpec, k: int) -> bytes:
        content, headers = self._exchange("GET", path, None, {}, body_limit(adapter, k))
        check_content_digest(content, headers.get("Content-Digest"))
        return content

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], limit: int
    ) -> tuple[bytes, Mapping[str, str]]:
        started = time.perf_counter()
        try:
            with self._session.request(
                method,
                self._base + path,
                data=body,
                headers=dict(headers),
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                stream=True,
                allow_redirects=False,
            ) as response:
                content = _read(response, limit)
        except requests.RequestException as error:
            raise ServerUnreachable(
                f"no answer from {self._base} ({type(error).__name__}): is the server running "
                "and reachable from here?"
            ) from error
        self.uploaded_bytes += len(body or b"")
        self.downloaded_bytes += len(content)
        if not 200 <= response.status_code < 300:
            raise _as_error(response.status_code, response.headers, content)
        self.meter.add(len(body or b""), len(content), time.perf_counter() - started)
        return content, response.headers


def _read(response: requests.Response, limit: int) -> bytes:
    """Read a body, but never more than ``limit`` bytes of it."""
    content = bytearray()
    for chunk in response.iter_content(_CHUNK_BYTES):
        content += chunk
        if len(content) > limit:
            raise TooLarge(f"the server sent more than the {limit} bytes this answer may have")
    return bytes(content)


def _as_error(status: int, headers: Mapping[str, str], content: bytes) -> EdgeError:
    """Return the exception the server raised, rebuilt from its problem body."""
    try:
        problem = decode_message(Problem, content)
    except WireError:
        return ServerFailed(f"HTTP {status} without a readable reason; is this an edge-server?")
    kind = by_code().get(problem.code, ServerFailed)
    if kind is ServerBusy:
        return ServerBusy(problem.detail, retry_after_s=_seconds(headers.get("Retry-After")))
    return kind(problem.detail)


def _seconds(header: str | None, default: float = 5.0) -> float:
    try:
        return max(0.0, float(header)) if header else default
    except ValueError:
        return default


def _part(name: str) -> str:
    return quote(name, safe="")
