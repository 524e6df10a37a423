"""The server's endpoints as methods, with the identity of a device."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import quote, urlsplit

from edge_sdk.errors import (
    ConfigError,
    DigestMismatch,
    NotAuthorized,
    NotFound,
    ServerUnreachable,
    StorageError,
)
from edge_sdk.identity.access import Access
from edge_sdk.identity.device_key import DeviceKey
from edge_sdk.identity.identity import Identity
from edge_sdk.network.bandwidth import Bandwidth, PacedBody
from edge_sdk.network.http_link import Download, HttpLink
from edge_sdk.network.link import LinkMeter
from edge_sdk.network.store_upload import put_into_store
from edge_sdk.wire.credentials import Enrolment, EnrolRequest
from edge_sdk.wire.manifest import Signed
from edge_sdk.wire.messages import (
    PRESIGNED,
    UPLOADS_HEADER,
    AdapterInfo,
    CheckIn,
    CheckInReply,
    EvaluationReport,
    HeldParts,
    Receipt,
    RoundStatus,
    UpdateNotice,
    UploadPlace,
    decode_message,
    encode_message,
)
from edge_sdk.wire.parts import WHOLE_UP_TO_BYTES, cut
from edge_sdk.wire.payload import (
    MEDIA_TYPE,
    body_limit,
    check_content_digest,
    content_digest,
    digest,
)
from edge_sdk.wire.proofs import enrolment_statement
from edge_sdk.wire.protocol import check_protocol
from edge_sdk.wire.task import TaskSpec

MAX_JSON_BYTES = 4 << 20
_PART_ATTEMPTS = 2
_STORE_FAILED = (NotFound, StorageError, DigestMismatch)

log = logging.getLogger("edge_sdk")

Answer = TypeVar("Answer")


class Transport:
    """The server's endpoints as methods; every failure is a typed error.

    Args:
        server: Base address, ``http://`` or ``https://``.
        identity: Of this device, which gets and renews its access tokens; None before enrolment.
        retries: Attempts after the first one in an outage of seconds; see
            :class:`edge_sdk.network.http_link.HttpLink`.
        max_upload_bytes_per_s: The most to send; None is as fast as the link is.
        max_download_bytes_per_s: The most to receive.
    """

    def __init__(
        self,
        server: str,
        identity: Identity | None = None,
        retries: int = 3,
        *,
        max_upload_bytes_per_s: float | None = None,
        max_download_bytes_per_s: float | None = None,
    ) -> None:
        self._base = server.rstrip("/")
        self._up = Bandwidth(max_upload_bytes_per_s)
        self._down = Bandwidth(max_download_bytes_per_s)
        self._link = HttpLink(self._base, retries, self._up, self._down)
        self._access = Access(identity, self._ask) if identity is not None else None
        self._is_store_offered = False

    @property
    def uploaded_bytes(self) -> int:
        """Return the bytes of request bodies sent so far, what was sent again included."""
        return self._up.moved_bytes

    @property
    def downloaded_bytes(self) -> int:
        """Return the bytes of response bodies received so far."""
        return self._down.moved_bytes

    @property
    def meter(self) -> LinkMeter:
        """What measures the link on them."""
        return self._link.meter

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

    def leave(self) -> None:
        """Have the server refuse this device from now on; again changes nothing."""
        if self._access is None:
            raise ConfigError("only a device that has joined a server can leave it")
        self._access.leave()

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
        content, headers = self._download(path, body_limit(task.adapter, k))
        announced = headers.get("Repr-Digest") or headers.get("Content-Digest")
        check_content_digest(content, announced)
        return content

    def submit(self, task: str, round_number: int, body: bytes) -> Receipt:
        """Send an update; when this returns, the server will count it exactly once.

        If the server offered its object store at the last check-in, the update is put there; where
        the store fails, it goes to the server after all. A large one goes to the server in parts,
        and only those are sent that the server does not have, also after a restart of the device.
        """
        path = f"/v1/tasks/{_part(task)}/rounds/{round_number}"
        if self._is_store_offered:
            receipt = self._submit_by_store(f"{path}/staged", body)
            if receipt is not None:
                return receipt
            log.warning("round %d: the update goes to the server itself", round_number)
        if len(body) > WHOLE_UP_TO_BYTES:
            receipt = self._submit_in_parts(f"{path}/parts", body)
            if receipt is not None:
                return receipt
        return self._json(Receipt, "PUT", f"{path}/update", body, _tensor_headers(body))

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
        return self._download(path, limit, f'"{digest}"')[0]

    def _download(self, path: str, limit: int, etag: str = "") -> tuple[bytes, Mapping[str, str]]:
        """Fetch a body, going on where a cut connection stopped while it is the same body."""
        download = Download()
        while True:
            had = len(download.body)
            known = etag or download.etag
            if not known:
                download.body.clear()
            rest = {"Range": f"bytes={had}-", "If-Range": known} if had and known else {}
            try:
                headers = self._receive("GET", path, None, rest, limit, download)
            except ServerUnreachable:
                if len(download.body) <= had:
                    raise
            else:
                return bytes(download.body), headers

    def _submit_in_parts(self, path: str, body: bytes) -> Receipt | None:
        """Send the parts of an update that the server does not have; None if it takes none."""
        notice = UpdateNotice(size_bytes=len(body), digest=digest(body))
        for _ in range(_PART_ATTEMPTS):
            try:
                held = set(self._json(HeldParts, "GET", f"{path}/{notice.digest}").parts)
            except NotFound:
                return None  # an older server; or there is no such round, which it says again
            for index, part in enumerate(cut(body)):
                if index not in held:
                    place = f"{path}/{notice.digest}/{index}"
                    headers = _tensor_headers(bytes(part))
                    self._exchange("PUT", place, part, headers, MAX_JSON_BYTES)
            try:
                return self._json(Receipt, "PUT", path, encode_message(notice))
            except DigestMismatch as error:
                log.warning("the parts are not the update: %s", error)
        return None

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
        paced = PacedBody(body, self._up)
        is_taken = put_into_store(url, paced, self._link.timeouts_s, needs_tls=needs_tls)
        if is_taken:
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

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | memoryview | None,
        headers: Mapping[str, str],
        limit: int,
    ) -> tuple[bytes, Mapping[str, str]]:
        download = Download()
        received = self._receive(method, path, body, headers, limit, download)
        return bytes(download.body), received

    def _ask(self, kind: type[Answer], path: str, message: object = None) -> Answer:
        """POST a message without an access token."""
        body = None if message is None else encode_message(message)
        headers = {"Content-Type": "application/json"} if body else {}
        download = Download()
        self._link.exchange("POST", path, body, headers, MAX_JSON_BYTES, download)
        return decode_message(kind, bytes(download.body))

    def _receive(
        self,
        method: str,
        path: str,
        body: bytes | memoryview | None,
        headers: Mapping[str, str],
        limit: int,
        into: Download,
    ) -> Mapping[str, str]:
        """Do one exchange with an access token, renewed before it ends and once if refused."""
        if self._access is None:
            return self._link.exchange(method, path, body, headers, limit, into)
        is_new = self._access.is_due
        if is_new:
            self._access.renew()
        try:
            shown = {**headers, **self._access.headers()}
            return self._link.exchange(method, path, body, shown, limit, into)
        except NotAuthorized:
            if is_new:
                raise
        self._access.renew()
        shown = {**headers, **self._access.headers()}
        return self._link.exchange(method, path, body, shown, limit, into)


def _tensor_headers(body: bytes) -> dict[str, str]:
    return {"Content-Type": MEDIA_TYPE, "Content-Digest": content_digest(body)}


def _part(name: str) -> str:
    return quote(name, safe="")
