"""What a device signs to prove that it holds its key, and how the server checks it."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_sdk.errors import BadProof


def enrolment_statement(enrolment_token: str, public_key: str) -> bytes:
    """Return what a new device signs: this key wants in, with this token."""
    token_hash = hashlib.sha256(enrolment_token.encode("utf-8", "surrogatepass")).hexdigest()
    return _statement("enrol", token_hash, public_key)


def access_statement(device_id: str, nonce: str) -> bytes:
    """Return what a device signs to get an access token."""
    return _statement("access", device_id, nonce)


def leave_statement(device_id: str, nonce: str) -> bytes:
    """Return what a device signs to be no device of the server any more."""
    return _statement("leave", device_id, nonce)


def key_change_statement(device_id: str, nonce: str, old_key: str, new_key: str) -> bytes:
    """Return what both keys of a device sign when one gives way to the other."""
    return _statement("key-change", device_id, nonce, old_key, new_key)


def check_proof(public_key: str, signature: str, statement: bytes) -> None:
    """Refuse a signature that a key did not make over a statement.

    Args:
        public_key: Ed25519, 64 hex digits.
        signature: 128 hex digits.
        statement: What was to be signed.

    Raises:
        BadProof: The signature is not of this key, or not over this statement.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), statement)
    except (InvalidSignature, ValueError) as error:
        raise BadProof(
            "the signature was not made by this device's key over this request: sign again, or "
            "join the server again if the key was lost"
        ) from error


def _statement(purpose: str, *facts: str) -> bytes:
    """Join facts so that no two lists of them, and no two purposes, give the same bytes."""
    return b"\0".join(
        part.encode("utf-8", "surrogatepass")
        for part in ("edge-sdk", purpose, *(f"{len(fact)}:{fact}" for fact in facts))
    )
