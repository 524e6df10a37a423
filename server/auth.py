"""Who may talk to the server: enrolment tokens for new devices, a bearer token for each."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable

from edge_sdk.errors import NotAuthorized
from edge_sdk.wire.messages import Enrolment, EnrolRequest
from server.store import DeviceRow, Store

_TOKEN_BYTES = 32
_ID_BYTES = 8


def _new_token() -> str:
    """Return a random secret that no shell or command line takes for a flag."""
    return f"edge_{secrets.token_urlsafe(_TOKEN_BYTES)}"


def make_enrolment_token(store: Store, now: float) -> str:
    """Return a new enrolment token; only its hash is kept."""
    token = _new_token()
    with store.write() as tx:
        tx.add_enrolment_token(hash_token(token), now)
    return token


def has_enrolment_token(store: Store) -> bool:
    """Say whether any device could enrol."""
    with store.read() as tx:
        return bool(tx.enrolment_token_hashes())


def hash_token(token: str) -> str:
    """Return the SHA-256 of a token; tokens are random, so they need no salt."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class Gate:
    """Lets devices in.

    Args:
        store: Where token hashes are.
        clock: Seconds since 1970.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    def enrol(self, request: EnrolRequest) -> Enrolment:
        """Give a new device its identity.

        Raises:
            NotAuthorized: The enrolment token is unknown.
        """
        given = hash_token(request.enrolment_token)
        device_token = _new_token()
        device = DeviceRow(
            id=secrets.token_hex(_ID_BYTES),
            name=request.name,
            token_hash=hash_token(device_token),
            enrolled_at=self._clock(),
        )
        with self._store.write() as tx:
            known = [hmac.compare_digest(given, kept) for kept in tx.enrolment_token_hashes()]
            if not any(known):
                raise NotAuthorized("the enrolment token is unknown: ask the operator for one")
            tx.add_device(device)
        return Enrolment(device_id=device.id, device_token=device_token)

    def authenticate(self, device_token: str | None) -> DeviceRow:
        """Return the device a bearer token belongs to.

        Raises:
            NotAuthorized: No token, or an unknown one.
        """
        if not device_token:
            raise NotAuthorized("send the device token as 'Authorization: Bearer <token>'")
        given = hash_token(device_token)
        with self._store.read() as tx:
            device = tx.device_by_token(given)
        if device is None or not hmac.compare_digest(given, device.token_hash):
            raise NotAuthorized("the device token is unknown to this server: enrol again")
        return device
