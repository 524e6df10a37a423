"""The access token of one device: asked for with its key, and renewed in time."""

from __future__ import annotations

import time
from typing import Protocol, TypeVar
from urllib.parse import quote

from edge_sdk.errors import BadProof, StaleChallenge
from edge_sdk.identity.device_key import DeviceKey
from edge_sdk.identity.identity import Identity
from edge_sdk.wire.credentials import (
    AccessRequest,
    AccessToken,
    Challenge,
    Departure,
    KeyChange,
)
from edge_sdk.wire.proofs import access_statement, key_change_statement, leave_statement

_RENEWED_AFTER = 0.8
"""Share of its life after which a token is renewed."""

Answer = TypeVar("Answer")


class Ask(Protocol):
    """Sends a message without an access token and returns the answer."""

    def __call__(self, kind: type[Answer], path: str, message: object = None) -> Answer:
        """POST a message."""


class Access:
    """What a device shows with every request.

    Args:
        identity: Of the device.
        ask: How the server is asked.
    """

    def __init__(self, identity: Identity, ask: Ask) -> None:
        self._ask = ask
        self._path = f"/v1/devices/{quote(identity.device_id, safe='')}"
        self._device_id = identity.device_id
        keys = filter(None, (identity.private_key, identity.next_private_key))
        self._keys = [DeviceKey(key) for key in keys]
        self._token = ""
        self._renew_at = 0.0

    @property
    def is_due(self) -> bool:
        """Say whether there is no token, or one that ends soon."""
        return not self._token or time.monotonic() >= self._renew_at

    def headers(self) -> dict[str, str]:
        """Return the header that opens the device's endpoints."""
        return {"Authorization": f"Bearer {self._token}"}

    def renew(self) -> None:
        """Get a new token.

        Raises:
            NotAuthorized: The server does not know this device; also BadProof.
            Revoked: The device was revoked.
        """
        *earlier, last = self._keys
        for key in earlier:
            try:
                return self._renew_with(key)
            except BadProof:
                continue  # the next key took over while nobody saw the server's answer
        return self._renew_with(last)

    def change_key(self, new: DeviceKey) -> None:
        """Let a new key take over.

        Raises:
            BadProof: The present key is no longer this device's.
        """
        old = self._keys[0]
        nonce = self._ask(Challenge, f"{self._path}/challenge").nonce
        statement = key_change_statement(self._device_id, nonce, old.public_key, new.public_key)
        request = KeyChange(
            nonce=nonce,
            public_key=new.public_key,
            signature=old.sign(statement),
            new_signature=new.sign(statement),
        )
        self._ask(AccessToken, f"{self._path}/key", request)

    def leave(self) -> None:
        """Have the server refuse this device's keys from now on.

        Raises:
            NotAuthorized: The server does not know this device; also BadProof.
        """
        *earlier, last = self._keys
        for key in earlier:
            try:
                return self._leave_with(key)
            except BadProof:
                continue  # the next key took over while nobody saw the server's answer
        return self._leave_with(last)

    def _leave_with(self, key: DeviceKey) -> None:
        nonce = self._ask(Challenge, f"{self._path}/challenge").nonce
        signature = key.sign(leave_statement(self._device_id, nonce))
        request = AccessRequest(nonce=nonce, signature=signature)
        self._ask(Departure, f"{self._path}/leave", request)

    def _renew_with(self, key: DeviceKey) -> None:
        try:
            granted = self._answer_challenge(key)
        except StaleChallenge:  # the reply was lost, and the same answer sent again
            granted = self._answer_challenge(key)
        self._token = granted.access_token
        self._renew_at = time.monotonic() + _RENEWED_AFTER * granted.expires_in_s

    def _answer_challenge(self, key: DeviceKey) -> AccessToken:
        nonce = self._ask(Challenge, f"{self._path}/challenge").nonce
        signature = key.sign(access_statement(self._device_id, nonce))
        request = AccessRequest(nonce=nonce, signature=signature)
        return self._ask(AccessToken, f"{self._path}/token", request)
