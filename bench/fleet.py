"""Made-up devices, each enrolled with a key of its own, that speak the real protocol and no more.

They train nothing and look into nothing they receive, so that the machine is the server's.
"""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np

from edge_sdk.identity.access import Access
from edge_sdk.identity.device_key import DeviceKey, make_private_key
from edge_sdk.identity.identity import Identity
from edge_sdk.wire.credentials import Enrolment, EnrolRequest
from edge_sdk.wire.messages import (
    Assignment,
    CheckIn,
    CheckInReply,
    RoundStatus,
    UpdateReport,
    decode_message,
    encode_message,
)
from edge_sdk.wire.payload import MEDIA_TYPE, adapter_shapes, content_digest, encode
from edge_sdk.wire.proofs import enrolment_statement
from edge_sdk.wire.task import TaskSpec

_TIMEOUT_S = 300.0
_READ_BYTES = 1 << 20
_STAMP_BYTES = 4  # two bf16 numbers, or one of fp32

Answer = TypeVar("Answer")
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """How long the three exchanges of one device in a round took, in seconds, and their bodies.

    Attributes:
        check_in_s: Until it had work.
        download_s: Until it had its slice; 0 if it only checked in.
        upload_s: Until it had the receipt of its update; 0 if it only checked in.
        download_bytes: Of the slice.
        upload_bytes: Of the update.
        busy_answers: How often the server said that it was busy; the device came back, as real
            ones do, and the seconds include that.
    """

    check_in_s: float
    download_s: float = 0.0
    upload_s: float = 0.0
    download_bytes: int = 0
    upload_bytes: int = 0
    busy_answers: int = 0


class Line:
    """One connection to the server.

    Args:
        address: ``http://host:port``.

    Attributes:
        busy_answers: How often the server said that it was busy.
    """

    def __init__(self, address: str) -> None:
        self.busy_answers = 0
        parts = urlsplit(address)
        self._connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=_TIMEOUT_S
        )

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, kind: type[Answer], path: str, message: object = None) -> Answer:
        """POST a message without an access token."""
        return decode_message(kind, self.exchange("POST", path, _json(message), {}))

    def exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> bytes:
        """Send one request and return the body of its answer."""
        return self._answer(method, path, body, headers).read()

    def drain(self, path: str, headers: Mapping[str, str]) -> int:
        """GET a body, keep nothing of it, and return how many bytes it had."""
        answer, received = self._answer("GET", path, None, headers), 0
        buffer = bytearray(_READ_BYTES)
        while count := answer.readinto(buffer):
            received += count
        return received

    def _answer(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        """Send one request, again while the server is busy."""
        kind = (
            {"Content-Type": "application/json"} if body and "Content-Type" not in headers else {}
        )
        while True:
            self._connection.request(method, path, body, {**kind, **headers})
            answer = self._connection.getresponse()
            if answer.status in (http.client.OK, http.client.CREATED):
                return answer
            said = answer.read()
            if answer.status != http.client.SERVICE_UNAVAILABLE:
                raise SystemExit(f"the server said {answer.status}: {said[:300]!r}")
            self.busy_answers += 1
            time.sleep(float(answer.getheader("Retry-After", "1")) * random.uniform(0.8, 1.2))  # noqa: S311 - jitter


class Bodies:
    """Updates of the right form; ``distinct`` different ones, whatever the number of devices.

    All are the same random numbers but for the first ones, so that a new body costs its SHA-256
    and nothing else.

    Args:
        spec: Of the task.
        k: Sketch size.
        distinct: How many different ones there are.
    """

    def __init__(self, spec: TaskSpec, k: int, distinct: int) -> None:
        rng = np.random.default_rng(0)
        shapes = adapter_shapes(spec.adapter, k)
        arrays = {n: 0.01 * rng.standard_normal(s, np.float32) for n, s in shapes.items()}
        report = UpdateReport(examples=1, loss=1.0, seconds=1.0, peak_rss_bytes=1)
        body = encode(arrays, spec.adapter.wire_dtype, encode_message(report))
        data = 8 + int.from_bytes(body[:8], "little")
        self._head, self._tail = body[:data], body[data + _STAMP_BYTES :]
        self._distinct = distinct
        self._digests: dict[int, str] = {}

    def body(self, number: int) -> tuple[bytes, str]:
        """Return the body of a device and its ``Content-Digest``."""
        stamp = number % self._distinct
        body = b"".join((self._head, _stamp(stamp), self._tail))
        if stamp not in self._digests:
            self._digests[stamp] = content_digest(body)
        return body, self._digests[stamp]


class Device:
    """One enrolled device.

    Args:
        address: Of the server.
        identity: Of the device.
        number: Among the fleet's, from 0.
    """

    def __init__(self, address: str, identity: Identity, number: int) -> None:
        self._address = address
        self._identity = identity
        self._number = number
        self._access = Access(identity, self._ask)

    def at(self, address: str) -> Device:
        """Return the same device for a server that has moved."""
        moved = Device(address, replace(self._identity, server=address), self._number)
        moved.prepare()
        return moved

    def prepare(self) -> None:
        """Get an access token: once an hour, not once a round."""
        self._access.renew()

    def take_part(self, spec: TaskSpec, k: int, bodies: Bodies | None) -> Turn:
        """Check in, fetch the slice and send an update; without bodies, check in only."""
        with Line(self._address) as line:
            begun = time.perf_counter()
            work = self._check_in(line, spec, k)
            check_in_s = time.perf_counter() - begun
            if bodies is None:
                return Turn(check_in_s=check_in_s, busy_answers=line.busy_answers)
            path = f"/v1/tasks/{spec.name}/rounds/{work.round_number}"
            begun = time.perf_counter()
            received = line.drain(f"{path}/slice", self._access.headers())
            download_s = time.perf_counter() - begun
            body, digest = bodies.body(self._number)
            headers = {"Content-Type": MEDIA_TYPE, "Content-Digest": digest}
            begun = time.perf_counter()
            line.exchange("PUT", f"{path}/update", body, {**headers, **self._access.headers()})
            return Turn(
                check_in_s=check_in_s,
                download_s=download_s,
                upload_s=time.perf_counter() - begun,
                download_bytes=received,
                upload_bytes=len(body),
                busy_answers=line.busy_answers,
            )

    def task(self, name: str) -> TaskSpec:
        """Return what the fleet agrees on."""
        with Line(self._address) as line:
            body = line.exchange("GET", f"/v1/tasks/{name}", None, self._access.headers())
        return decode_message(TaskSpec, body)

    def round_status(self, task: str, number: int) -> RoundStatus:
        """Return where a round stands."""
        with Line(self._address) as line:
            path = f"/v1/tasks/{task}/rounds/{number}"
            body = line.exchange("GET", path, None, self._access.headers())
        return decode_message(RoundStatus, body)

    def _check_in(self, line: Line, spec: TaskSpec, k: int) -> Assignment:
        message = CheckIn(base_digest=spec.base.digest, affordable_k=k, examples=1)
        path = f"/v1/tasks/{spec.name}/check-in"
        body = line.exchange("POST", path, encode_message(message), self._access.headers())
        work = decode_message(CheckInReply, body).assignment
        if work is None or work.k != k:
            raise SystemExit(f"asked for k={k}, was assigned {work}")
        return work

    def _ask(self, kind: type[Answer], path: str, message: object = None) -> Answer:
        with Line(self._address) as line:
            return line.ask(kind, path, message)


def enrol(address: str, enrolment_token: str, count: int, at_once: int) -> list[Device]:
    """Let new devices in, each with a key of its own, and give each an access token."""

    def one(number: int) -> Device:
        private_key = make_private_key()
        key = DeviceKey(private_key)
        request = EnrolRequest(
            enrolment_token=enrolment_token,
            name=f"d{number}",
            public_key=key.public_key,
            proof=key.sign(enrolment_statement(enrolment_token, key.public_key)),
        )
        with Line(address) as line:
            device_id = line.ask(Enrolment, "/v1/enrol", request).device_id
        identity = Identity(
            server=address, device_id=device_id, private_key=private_key, name=request.name
        )
        device = Device(address, identity, number)
        device.prepare()
        return device

    return side_by_side(one, range(count), at_once)


def side_by_side(do: Callable[[Given], Made], things: Sequence[Given], at_once: int) -> list[Made]:
    """Do the same for many things, some at once, and return the results in their order."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(do, things))


def _stamp(number: int) -> bytes:
    """Return finite numbers of bf16 or fp32 that tell one body from another."""
    return (0x3C003C00 + (number >> 8 << 16) + (number & 0xFF)).to_bytes(_STAMP_BYTES, "little")


def _json(message: object) -> bytes | None:
    return None if message is None else encode_message(message)
