"""One HTTP exchange with the server: timeouts, retries, identity, status to exception."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from http import HTTPStatus
from io import BytesIO
from typing import TypeVar
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from edge_sdk.access import Access
from edge_sdk.device_key import DeviceKey
from edge_sdk.errors import (
    ConfigError,
    DigestMismatch,
    EdgeError,
    NotAuthorized,
    NotFound,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
    StorageError,
    TooLarge,
    WireError,
    by_code,
)
from edge_sdk.identity import Identity
from edge_sdk.link import LinkMeter
from edge_sdk.store_upload import put_into_store, without_password
from edge_sdk.wire.manifest import Signed
from edge_sdk.wire.messages import (
    PRESIGNED,
    UPLOADS_HEADER,
    AdapterInfo,
    AdapterSpec,
    CheckIn,
    CheckInReply,
    Enrolment,
    EnrolRequest,
    EvaluationReport,
    Problem,
    Receipt,
    RoundStatus,
    TaskSpec,
    UpdateNotice,
    UploadPlace,
    check_protocol,
    decode_message,
    encode_message,
)
from edge_sdk.wire.payload import (
    MEDIA_TYPE,
    body_limit,
    check_content_digest,
    content_digest,
    digest,
)
from edge_sdk.wire.proofs import enrolment_statement

MAX_JSON_BYTES = 4 << 20
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 16
_STORE_FAILED = (NotFound, StorageError, DigestMismatch)

log = logging.getLogger("edge_sdk")

Answer = TypeVar("Answer")


class _Retry(Retry):
    """Leaves 429 to the caller: a quota may ask for hours, which nobody sleeps through here."""

    RETRY_AFTER_STATUS_CODES = frozenset({503})


class Transport:
    """The server's endpoints as methods; every failure is a typed error.

    Short outages are retried here with jittered back-off; requests are idempotent, so a reply
    that was lost does no harm.

    Args:
        server: Base address, ``http://`` or ``https://``.
        identity: Of this device, which gets and renews its access tokens; None before enrolment.
        retries: Attempts after the first one, for refused connections and 502, 503, 504.

    Attributes:
        uploaded_bytes: Request bodies sent so far, each counted once.
        downloaded_bytes: Response bodies received so far.
        meter: Measures the link on them.
    """

    def __init__(self, server: str, identity: Identity | None = None, retries: int = 3) -> None:
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"server address {server!r} must look like http://host:port")
        self._base = server.rstrip("/")
        self._session = requests.Session()
        self._session.auth = without_password
        self._access = Access(identity, self._ask) if identity is not None else None
        retry = _Retry(
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
        self._is_store_offered = False

    @property
    def server(self) -> str:
        """Base address, without a slash at its end."""
        return self._base

    def enrol(self, enrolment_token: str, name: str, key: DeviceKey) -> Enrolment:
        """Let the server know this device by its key; the same key again is the same device."""
        proof = key.sign(enrolment_statement(enrolment_token, key.public_key))
        request = EnrolRequest(
            enrolment_token=enrolment_token, name=name, public_key=key.public_key, proof=proof
        )
        return self._ask(Enrolment, "/v1/enrol", request)

    def change_key(self, new: DeviceKey) -> None:
        """Let a new key of this device take over.

        Raises:
            BadProof: The present key is no longer this device's.
        """
        if self._access is None:
            raise ConfigError("only a device that has joined a server has a key to change")
        self._access.change_key(new)

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
        headers = {"Content-Type": "application/json"}
        body = encode_message(message)
        content, received = self._exchange("POST", path, body, headers, MAX_JSON_BYTES)
        self._is_store_offered = received.get(UPLOADS_HEADER) == PRESIGNED
        return decode_message(CheckInReply, content)

    def round_status(self, task: str, round_number: int) -> RoundStatus:
        """Return the state of one round."""
        return self._json(RoundStatus, "GET", f"/v1/tasks/{_part(task)}/rounds/{round_number}")

    def slice_body(self, task: TaskSpec, round_number: int, k: int) -> bytes:
        """Fetch the k columns and rows this device trains, as checked bytes."""
        path = f"/v1/tasks/{_part(task.name)}/rounds/{round_number}/slice"
        return self._tensors(path, task.adapter, k)

    def submit(self, task: str, round_number: int, body: bytes) -> Receipt:
        """Send an update; when this returns, the server will count it exactly once.

        If the server offered its object store at the last check-in, the update is put there; where
        the store fails, it goes to the server after all.
        """
        path = f"/v1/tasks/{_part(task)}/rounds/{round_number}"
        if self._is_store_offered:
            receipt = self._submit_by_store(f"{path}/staged", body)
            if receipt is not None:
                return receipt
            log.warning("round %d: the update goes to the server itself", round_number)
        headers = {"Content-Type": MEDIA_TYPE, "Content-Digest": content_digest(body)}
        return self._json(Receipt, "PUT", f"{path}/update", body, headers)

    def adapters(self, task: str) -> list[AdapterInfo]:
        """Return the versions of the global adapter, oldest first."""
        return self._json(list[AdapterInfo], "GET", f"/v1/tasks/{_part(task)}/adapters")

    def pointer(self, task: str) -> Signed:
        """Return which version of a task's adapter devices use now; not checked yet."""
        return self._json(Signed, "GET", f"/v1/tasks/{_part(task)}/channels/stable")

    def manifest(self, task: str, version: int) -> Signed:
        """Return what one version of an adapter is; not checked yet."""
        return self._json(Signed, "GET", f"/v1/tasks/{_part(task)}/adapters/{version}/manifest")

    def report_evaluation(self, task: str, report: EvaluationReport) -> None:
        """Tell how a version did on this device; a second report on it changes nothing."""
        body, headers = encode_message(report), {"Content-Type": "application/json"}
        path = f"/v1/tasks/{_part(task)}/evaluations"
        self._exchange("POST", path, body, headers, MAX_JSON_BYTES)

    def key_successions(self) -> list[Signed]:
        """Return how the server's first key led to its newest; not checked yet."""
        return self._json(list[Signed], "GET", "/v1/keys")

    def adapter_body(self, task: TaskSpec, version: int, digest: str) -> bytes:
        """Fetch one version at full rank, going on where a cut connection stopped.

        Args:
            task: Whose adapter.
            version: Which one.
            digest: SHA-256 it shall have; the rest of another body is not taken for its rest. The
                caller checks the whole.

        Raises:
            ServerUnreachable: The connection was cut before a byte more had come.
        """
        path = f"/v1/tasks/{_part(task.name)}/adapters/{version}"
        limit = body_limit(task.adapter, task.adapter.r)
        body = bytearray()
        while True:
            had = len(body)
            rest = {"Range": f"bytes={had}-", "If-Range": f'"{digest}"'} if had else {}
            try:
                self._receive("GET", path, None, rest, limit, body)
            except ServerUnreachable:
                if len(body) <= had:
                    raise
            else:
                return bytes(body)

    def _submit_by_store(self, path: str, body: bytes) -> Receipt | None:
        """Put an update into the object store and get its receipt; None if the store failed."""
        notice = encode_message(UpdateNotice(size_bytes=len(body), digest=digest(body)))
        try:
            place = self._json(UploadPlace, "POST", path, notice)
            is_taken = self._put_into_store(place.url, body)
            return self._json(Receipt, "PUT", path, notice) if is_taken else None
        except _STORE_FAILED as error:
            log.warning("the object store is of no use now: %s", error)
            return None

    def _put_into_store(self, url: str, body: bytes) -> bool:
        started = time.perf_counter()
        needs_tls = urlsplit(self._base).scheme == "https"
        timeouts_s = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        is_taken = put_into_store(url, body, timeouts_s, needs_tls=needs_tls)
        if is_taken:
            self.uploaded_bytes += len(body)
            self.meter.add(len(body), 0, time.perf_counter() - started)
        return is_taken

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
        content = bytearray()
        received = self._receive(method, path, body, headers, limit, content)
        return bytes(content), received

    def _ask(self, kind: type[Answer], path: str, message: object = None) -> Answer:
        """POST a message without an access token."""
        body = None if message is None else encode_message(message)
        headers = {"Content-Type": "application/json"} if body else {}
        content = bytearray()
        self._receive_once("POST", path, body, headers, MAX_JSON_BYTES, content)
        return decode_message(kind, bytes(content))

    def _receive(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        limit: int,
        into: bytearray,
    ) -> Mapping[str, str]:
        """Do one exchange with an access token, renewed before it ends and once if refused."""
        if self._access is None:
            return self._receive_once(method, path, body, headers, limit, into)
        is_new = self._access.is_due
        if is_new:
            self._access.renew()
        try:
            shown = {**headers, **self._access.headers()}
            return self._receive_once(method, path, body, shown, limit, into)
        except NotAuthorized:
            if is_new:
                raise
        self._access.renew()
        shown = {**headers, **self._access.headers()}
        return self._receive_once(method, path, body, shown, limit, into)

    def _receive_once(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        limit: int,
        into: bytearray,
    ) -> Mapping[str, str]:
        """Put the answer's body in place of what is there, a part of one behind it."""
        started = time.perf_counter()
        try:
            with self._session.request(
                method,
                self._base + path,
                data=BytesIO(body) if body else None,  # bytes would have to be gone in one timeout
                headers=dict(headers),
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                stream=True,
                allow_redirects=False,
            ) as response:
                content = into if 200 <= response.status_code < 300 else bytearray()
                if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                    content.clear()
                had = len(content)
                _read(response, limit, content)
        except requests.RequestException as error:
            raise ServerUnreachable(
                f"no answer from {self._base} ({type(error).__name__}): is the server running "
                "and reachable from here?"
            ) from error
        self.uploaded_bytes += len(body or b"")
        self.downloaded_bytes += len(content) - had
        if not 200 <= response.status_code < 300:
            raise _as_error(response.status_code, response.headers, bytes(content))
        self.meter.add(len(body or b""), len(content) - had, time.perf_counter() - started)
        return response.headers


def _read(response: requests.Response, limit: int, content: bytearray) -> None:
    """Append a body, but never to more than ``limit`` bytes."""
    for chunk in response.iter_content(_CHUNK_BYTES):
        content += chunk
        if len(content) > limit:
            raise TooLarge(f"the server sent more than the {limit} bytes this answer may have")


def _as_error(status: int, headers: Mapping[str, str], content: bytes) -> EdgeError:
    """Return the exception the server raised, rebuilt from its problem body."""
    try:
        problem = decode_message(Problem, content)
    except WireError:
        return ServerFailed(f"HTTP {status} without a readable reason; is this an edge-server?")
    kind = by_code().get(problem.code, ServerFailed)
    if issubclass(kind, ServerBusy):
        return kind(problem.detail, retry_after_s=_seconds(headers.get("Retry-After")))
    return kind(problem.detail)


def _seconds(header: str | None, default: float = 5.0) -> float:
    try:
        return max(0.0, float(header)) if header else default
    except ValueError:
        return default


def _part(name: str) -> str:
    return quote(name, safe="")
