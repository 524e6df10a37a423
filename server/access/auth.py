"""How devices get in: enrolment with a token, then access with a key of their own."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import replace

from edge_sdk.errors import (
    ConfigError,
    NotAuthorized,
    NotFound,
    Revoked,
    TokenExpired,
    TokenUsedUp,
)
from edge_sdk.wire.credentials import (
    AccessRequest,
    AccessToken,
    Challenge,
    Departure,
    Enrolment,
    EnrolRequest,
    KeyChange,
)
from edge_sdk.wire.proofs import (
    access_statement,
    check_proof,
    enrolment_statement,
    key_change_statement,
    leave_statement,
)
from server.access.audit import record
from server.access.credentials import Credentials
from server.access.tokens import hash_token, new_token
from server.rules.relay_rules import MOST_MEMBERS
from server.storage.access_store import DeviceRow, EnrolmentTokenRow
from server.storage.store import Store, Transaction

_ID_BYTES = 8
_MOST_NAME_CHARACTERS = 100
_MOST_USES = 2**31 - 1


def make_enrolment_token(
    store: Store,
    now: float,
    *,
    name: str = "",
    uses: int | None = None,
    expires_at: float | None = None,
    relay_for: int | None = None,
    who: str = "the operator",
) -> str:
    """Return a new enrolment token; only its hash is kept.

    Args:
        store: Where the hash goes.
        now: Seconds since 1970.
        name: For people.
        uses: Devices it lets in; None for any number.
        expires_at: From when on it lets nobody in; None for never.
        relay_for: Devices a relay may speak for that it lets in; None lets devices in.
        who: For the audit log.

    Raises:
        ConfigError: A number of uses or of devices, or a name that cannot be.
    """
    if uses is not None and not 1 <= uses <= _MOST_USES:
        raise ConfigError(f"uses={uses} must be in 1..{_MOST_USES}; leave it out for any number")
    if relay_for is not None and not 1 <= relay_for <= MOST_MEMBERS:
        raise ConfigError(f"relay_for={relay_for} devices must be in 1..{MOST_MEMBERS}")
    if len(name) > _MOST_NAME_CHARACTERS or not name.isprintable():
        raise ConfigError(f"token name {name!r} must be at most 100 printable characters")
    token = new_token()
    row = EnrolmentTokenRow(
        id=secrets.token_hex(_ID_BYTES),
        token_hash=hash_token(token),
        name=name,
        created_at=now,
        expires_at=expires_at,
        uses_left=uses,
        relay_for=relay_for,
    )
    right = "" if relay_for is None else f" (a relay for {relay_for} devices)"
    with store.write() as tx:
        tx.add_enrolment_token(row)
        record(tx, now, who, "token.create", f"{row.id} {name}".strip() + right)
    return token


def revoke_enrolment_token(store: Store, token_id: str, who: str, now: float) -> None:
    """Let an enrolment token let nobody in; devices that are in stay, and again changes nothing.

    Raises:
        NotFound: There is no token with this id.
    """
    with store.write() as tx:
        row = next((row for row in tx.enrolment_tokens() if row.id == token_id), None)
        if row is None:
            raise NotFound(f"there is no enrolment token {token_id!r}: see 'token list'")
        if row.revoked_at is None:
            tx.update_enrolment_token(replace(row, revoked_at=now))
            record(tx, now, who, "token.revoke", f"{row.id} {row.name}".strip())


def revoke_device(store: Store, device_id: str, who: str, now: float) -> DeviceRow:
    """Refuse a device from its next request on; again changes nothing.

    Raises:
        NotFound: There is no such device.
    """
    with store.write() as tx:
        row = tx.device(device_id)
        if row is None:
            raise NotFound(f"there is no device {device_id!r}: see 'device list'")
        if row.revoked_at is None:
            row = replace(row, revoked_at=now)
            tx.update_device(row)
            record(tx, now, who, "device.revoke", f"{row.id} {row.name}")
        return row


def has_enrolment_token(store: Store, now: float) -> bool:
    """Say whether any new device could enrol."""
    with store.read() as tx:
        return any(row.is_open(now) for row in tx.enrolment_tokens())


class Gate:
    """Lets devices in.

    Args:
        store: Where devices and hashes are.
        clock: Seconds since 1970.
        credentials: Makes and checks what devices show.
    """

    def __init__(self, store: Store, clock: Callable[[], float], credentials: Credentials) -> None:
        self._store = store
        self._clock = clock
        self._credentials = credentials

    def enrol(self, request: EnrolRequest) -> Enrolment:
        """Let a new device in; the same key again is the same device and uses nothing up.

        Raises:
            NotAuthorized: The enrolment token is unknown.
            BadProof: The device does not hold the key it wants to be known by.
            TokenExpired: The token's time is over.
            TokenUsedUp: It let in as many devices as it may.
            Revoked: The token or the device was revoked.
        """
        check_proof(
            request.public_key,
            request.proof,
            enrolment_statement(request.enrolment_token, request.public_key),
        )
        now = self._clock()
        with self._store.write() as tx:
            token = _known_token(tx, hash_token(request.enrolment_token))
            device = tx.device_by_key(request.public_key)
            if device is None:
                _use(tx, token, now)
                device = DeviceRow(
                    id=secrets.token_hex(_ID_BYTES),
                    name=request.name,
                    public_key=request.public_key,
                    enrolled_at=now,
                    enrolled_with=token.id,
                    relay_for=token.relay_for,
                )
                tx.add_device(device)
        _refuse_revoked(device)
        return Enrolment(device_id=device.id)

    def challenge(self, device_id: str) -> Challenge:
        """Return something new for a device to sign, also if there is no such device."""
        return self._credentials.challenge(device_id)

    def give_access(self, device_id: str, request: AccessRequest) -> AccessToken:
        """Exchange a signed challenge for an access token.

        Raises:
            NotAuthorized: There is no such device.
            BadProof: The signature is not of its key.
            StaleChallenge: The challenge is foreign, old or used.
            Revoked: The device was revoked.
        """
        device = self._device(device_id)
        statement = access_statement(device_id, request.nonce)
        check_proof(device.public_key, request.signature, statement)
        challenge = self._credentials.open_challenge(device_id, request.nonce)
        with self._store.write() as tx:
            self._credentials.use_up(tx, challenge)
        _refuse_revoked(device)
        return self._credentials.access_token(device)

    def change_key(self, device_id: str, request: KeyChange) -> AccessToken:
        """Let a new key of a device take over; tokens given to the old one open nothing more.

        Raises:
            NotAuthorized: There is no such device.
            BadProof: One of the signatures is not of its key.
            StaleChallenge: The challenge is foreign, old or used.
            ConfigError: The new key is known already.
            Revoked: The device was revoked.
        """
        device = self._device(device_id)
        old, new = device.public_key, request.public_key
        statement = key_change_statement(device_id, request.nonce, old, new)
        check_proof(old, request.signature, statement)
        check_proof(new, request.new_signature, statement)
        challenge = self._credentials.open_challenge(device_id, request.nonce)
        with self._store.write() as tx:
            self._credentials.use_up(tx, challenge)
            device = tx.device(device_id) or device
            _refuse_revoked(device)
            if device.public_key != old or tx.device_by_key(new) is not None:
                raise ConfigError("the new key is in use, or another one took over: make a new one")
            device = replace(device, public_key=new, key_number=device.key_number + 1)
            tx.update_device(device)
        return self._credentials.access_token(device)

    def leave(self, device_id: str, request: AccessRequest) -> Departure:
        """Refuse a device from now on, because it says so itself; again changes nothing.

        Raises:
            NotAuthorized: There is no such device.
            BadProof: The signature is not of its key.
            StaleChallenge: The challenge is foreign, old or used.
        """
        device = self._device(device_id)
        statement = leave_statement(device_id, request.nonce)
        check_proof(device.public_key, request.signature, statement)
        challenge = self._credentials.open_challenge(device_id, request.nonce)
        now = self._clock()
        with self._store.write() as tx:
            self._credentials.use_up(tx, challenge)
            device = tx.device(device_id) or device
            if device.revoked_at is None:
                device = replace(device, revoked_at=now)
                tx.update_device(device)
                record(tx, now, f"device {device.id}", "device.leave", device.name)
        return Departure(device_id=device.id, left_at=device.revoked_at or now)

    def authenticate(self, access_token: str | None) -> DeviceRow:
        """Return the device an access token belongs to; reads one row.

        Raises:
            NotAuthorized: No token, or none of this server; also TokenExpired.
            Revoked: The device was revoked.
        """
        if not access_token:
            raise NotAuthorized("send an access token as 'Authorization: Bearer <token>'")
        device_id, key_number = self._credentials.read_access_token(access_token)
        device = self._device(device_id)
        _refuse_revoked(device)
        if device.key_number != key_number:
            raise NotAuthorized("the access token was given to an older key: sign a new challenge")
        return device

    def _device(self, device_id: str) -> DeviceRow:
        with self._store.read() as tx:
            device = tx.device(device_id)
        if device is None:
            raise NotAuthorized("the device is unknown to this server: join it, or join again")
        return device


def _known_token(tx: Transaction, given: str) -> EnrolmentTokenRow:
    row = tx.enrolment_token(given)
    if row is None or not hmac.compare_digest(given, row.token_hash):
        raise NotAuthorized("the enrolment token is unknown: ask the operator for one")
    return row


def _use(tx: Transaction, token: EnrolmentTokenRow, now: float) -> None:
    if token.revoked_at is not None:
        raise Revoked("the enrolment token was revoked: ask the operator for another")
    if token.expires_at is not None and now >= token.expires_at:
        raise TokenExpired("the enrolment token has expired: ask the operator for another")
    if token.uses_left == 0:
        raise TokenUsedUp(
            "the enrolment token has let in as many devices as it may: ask the operator for another"
        )
    if token.uses_left is not None:
        tx.update_enrolment_token(replace(token, uses_left=token.uses_left - 1))


def _refuse_revoked(device: DeviceRow) -> None:
    if device.revoked_at is not None:
        raise Revoked(f"device {device.id} was revoked by the operator of this server, or left it")
