"""The messages by which a device joins, proves its key and gets its tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_sdk.errors import ConfigError
from edge_sdk.wire.protocol import DIGEST

_SIGNATURE = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRequest:
    """A new device asks to be let in.

    Attributes:
        enrolment_token: Given to the owner by the operator.
        name: For people; need not be unique.
        public_key: The device's Ed25519 key, 64 hex digits.
        proof: Signature of that key over :func:`edge_sdk.wire.proofs.enrolment_statement`.
    """

    enrolment_token: str
    name: str
    public_key: str
    proof: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 100 or not self.name.isprintable():
            raise ConfigError(f"device name {self.name!r} must be 1 to 100 printable characters")
        _check_key(self.public_key)
        _check_signature("proof", self.proof)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """The identity of a device.

    Attributes:
        device_id: Given by the server.
        signing_key: Public key the device trusts from now on, 64 hex digits; it signs adapters.
    """

    device_id: str
    signing_key: str = ""

    def __post_init__(self) -> None:
        if self.signing_key and not DIGEST.fullmatch(self.signing_key):
            raise ConfigError(f"signing_key={self.signing_key[:20]!r} is not 64 hex digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """Something new for a device to sign.

    Attributes:
        nonce: Good once, for one device.
        expires_in_s: Seconds until it is good no more.
    """

    nonce: str
    expires_in_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequest:
    """A device answers a challenge.

    Attributes:
        nonce: Of the challenge.
        signature: Of the device's key over :func:`edge_sdk.wire.proofs.access_statement`, or over
            :func:`edge_sdk.wire.proofs.leave_statement`, as the request asks.
    """

    nonce: str
    signature: str

    def __post_init__(self) -> None:
        _check_signature("signature", self.signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """What opens the device's endpoints for a while.

    Attributes:
        access_token: Secret; sent as a bearer token, never logged.
        expires_in_s: Seconds until it opens nothing any more.
    """

    access_token: str
    expires_in_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A device is none of this server any more: its key and tokens open nothing.

    Attributes:
        device_id: What it was.
        left_at: Seconds since 1970.
    """

    device_id: str
    left_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """A device asks to be known by a new key.

    Attributes:
        nonce: Of a challenge.
        public_key: The new Ed25519 key, 64 hex digits.
        signature: Of the old key over :func:`edge_sdk.wire.proofs.key_change_statement`.
        new_signature: Of the new key over the same.
    """

    nonce: str
    public_key: str
    signature: str
    new_signature: str

    def __post_init__(self) -> None:
        _check_key(self.public_key)
        _check_signature("signature", self.signature)
        _check_signature("new_signature", self.new_signature)


def _check_key(public_key: str) -> None:
    if not DIGEST.fullmatch(public_key):
        raise ConfigError(f"public_key={public_key[:20]!r} is not 64 hex digits")


def _check_signature(name: str, signature: str) -> None:
    if not _SIGNATURE.fullmatch(signature):
        raise ConfigError(f"{name}={signature[:20]!r} is not 128 hex digits")
