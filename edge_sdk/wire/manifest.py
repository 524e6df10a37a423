"""Signed statements: what an adapter version is, which version to use, whose key speaks.

A statement is canonical JSON (keys sorted, no spaces) and signed with Ed25519 over the
pre-authentication encoding of DSSE v1, which names the kind of statement: one kind never passes
for another. What is verified is the very text that came, so readers may ignore fields they do
not know.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_sdk.errors import BadSignature, ConfigError, UnknownKey
from edge_sdk.wire.messages import decode_message
from edge_sdk.wire.task import AdapterSpec

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_KEY_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A statement with its signature.

    Attributes:
        payload: The statement as canonical JSON.
        key_id: Whose signature it is; see :func:`key_id_of`.
        signature: Ed25519, 128 hex digits.
    """

    payload: str
    key_id: str
    signature: str

    def __post_init__(self) -> None:
        if not (_KEY_ID.fullmatch(self.key_id) and _SIGNATURE.fullmatch(self.signature)):
            raise ConfigError(
                f"key_id={self.key_id[:20]!r} must be 16 hex digits and the signature 128"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What one adapter version is.

    Attributes:
        task: Name of the task.
        version: 0 is the initial adapter.
        round_number: The round that made it; 0 for the initial one.
        parent_version: The version that round started from; None for the initial one.
        parent_digest: SHA-256 of that version's tensor file; None if the server never had it, as a
            relay that missed a round.
        base_digest: Of the base model it belongs to.
        spec_digest: Of rank, scaling, targets and number format; see :func:`spec_digest`.
        digest: SHA-256 of the tensor file.
        size_bytes: Of the tensor file.
        created_at: Seconds since 1970, UTC.
    """

    task: str
    version: int
    round_number: int
    parent_version: int | None
    parent_digest: str | None
    base_digest: str
    spec_digest: str
    digest: str
    size_bytes: int
    created_at: float

    def __post_init__(self) -> None:
        for digest in (self.base_digest, self.spec_digest, self.digest):
            if not _DIGEST.fullmatch(digest):
                raise ConfigError(f"digest {digest[:20]!r} of a manifest is not 64 hex digits")
        if self.version < 0 or self.size_bytes < 1:
            raise ConfigError(
                f"version={self.version}, size_bytes={self.size_bytes}: a manifest has a version "
                "from 0 and at least one byte"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """Which version of a task's adapter devices shall use now.

    Attributes:
        task: Name of the task.
        sequence: Grows with every change; a pointer to an older version with a larger sequence
            is a roll back by the operator, one with a smaller sequence is an attack or a backup.
        version: For every device that is not in the canary.
        canary_version: For the devices that are; None without a canary.
        canary_share: Share of the devices in the canary, 0 to 1.
        created_at: Seconds since 1970, UTC.
    """

    task: str
    sequence: int
    version: int
    canary_version: int | None
    canary_share: float
    created_at: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.canary_share) and 0 <= self.canary_share <= 1):
            raise ConfigError(f"canary_share={self.canary_share} must be in 0..1")
        if self.sequence < 1 or self.version < 0:
            raise ConfigError(
                f"sequence={self.sequence}, version={self.version}: a sequence starts at 1, a "
                "version at 0"
            )

    def version_for(self, device_id: str) -> int:
        """Return the version one device shall use."""
        if self.canary_version is not None and self.has_in_canary(device_id):
            return self.canary_version
        return self.version

    def has_in_canary(self, device_id: str) -> bool:
        """Say whether a device is in the canary; a larger share keeps those of a smaller one."""
        drawn = hashlib.sha256(f"{self.task}\n{device_id}".encode()).digest()[:8]
        return int.from_bytes(drawn, "big") < self.canary_share * 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Succession:
    """The word of a key that another one speaks from now on.

    Attributes:
        public_key: Of the new key, 64 hex digits.
        created_at: Seconds since 1970, UTC.
    """

    public_key: str
    created_at: float

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.public_key):
            raise ConfigError(f"public key {self.public_key[:20]!r} is not 64 hex digits")


Statement = TypeVar("Statement", Manifest, Pointer, Succession)

_KINDS: dict[type, bytes] = {
    Manifest: b"application/vnd.edge-sdk.adapter-manifest.v1+json",
    Pointer: b"application/vnd.edge-sdk.channel-pointer.v1+json",
    Succession: b"application/vnd.edge-sdk.key-succession.v1+json",
}


def key_id_of(public_key: str) -> str:
    """Return the name of a public key: the first 16 hex digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:16]


def canonical(value: object) -> bytes:
    """Return the one JSON text of a value: keys sorted, no spaces, shortest numbers."""
    return msgspec.json.encode(value, order="sorted")


def bytes_to_sign(kind: type, payload: bytes) -> bytes:
    """Return what a signature is made over: the payload, and what kind of statement it is."""
    name = _KINDS[kind]
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def spec_digest(adapter: AdapterSpec) -> str:
    """Return the SHA-256 of all that decides how an adapter's tensors are read and scaled."""
    facts = {
        "r": adapter.r,
        "lora_alpha": float(adapter.lora_alpha),
        "use_rslora": adapter.use_rslora,
        "target_modules": adapter.target_modules,
        "layers": [[layer.name, layer.d_in, layer.d_out] for layer in adapter.layers],
        "dense": [[dense.name, dense.shape] for dense in adapter.dense],
        "wire_dtype": adapter.wire_dtype,
    }
    return hashlib.sha256(canonical(facts)).hexdigest()


def open_signed(kind: type[Statement], signed: Signed, public_key: str) -> Statement:
    """Return a statement whose signature by this very key is right.

    Raises:
        UnknownKey: Another key signed it.
        BadSignature: The signature is not of this text and kind.
        MalformedMessage: Signed, but not of this form.
    """
    if signed.key_id != key_id_of(public_key):
        raise UnknownKey(
            f"the {kind.__name__.lower()} is signed by key {signed.key_id}, not by the trusted "
            f"{key_id_of(public_key)}: ask the operator whether the server's key was changed"
        )
    payload = signed.payload.encode("utf-8", "surrogatepass")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
    try:
        key.verify(bytes.fromhex(signed.signature), bytes_to_sign(kind, payload))
    except InvalidSignature:
        raise BadSignature(
            f"the signature of key {signed.key_id} under the {kind.__name__.lower()} is wrong: "
            "it was changed on the way or on the server, do not use it"
        ) from None
    return decode_message(kind, payload)


def follow_successions(trusted: str, successions: Sequence[Signed]) -> str:
    """Return the public key that a trusted one leads to, itself if it never gave way.

    Args:
        trusted: Public key, 64 hex digits.
        successions: Signed :class:`Succession` statements, oldest first.

    Raises:
        BadSignature: The trusted key did not sign what bears its name.
    """
    for signed in successions:
        if signed.key_id == key_id_of(trusted):
            trusted = open_signed(Succession, signed, trusted).public_key
    return trusted
