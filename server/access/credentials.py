"""Challenges and access tokens: made and checked by any replica, with keys from the database."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Callable

from edge_sdk.errors import NotAuthorized, StaleChallenge, TokenExpired
from edge_sdk.wire.credentials import AccessToken, Challenge
from server.access.audit import record
from server.storage.access_store import AccessKeyRow, DeviceRow
from server.storage.store import Store, Transaction

CHALLENGE_S = 60.0
"""How long a device may take to answer a challenge."""

KEYS_KNOWN_S = 5.0
"""For how long a process may not notice that keys were rotated."""

_PREFIX = "edge"
_PARTS = 5
_NONCE_BYTES = 16
_SECRET_BYTES = 32
_MOST_DIGITS = 15


class Credentials:
    """What is sealed with the server's access keys.

    Args:
        store: Where the keys are.
        clock: Seconds since 1970.
        ttl_s: Seconds an access token lives.
    """

    def __init__(self, store: Store, clock: Callable[[], float], ttl_s: float) -> None:
        self._store = store
        self._clock = clock
        self._ttl_s = ttl_s
        self._known: tuple[float, list[AccessKeyRow]] = (-math.inf, [])

    def challenge(self, device_id: str) -> Challenge:
        """Return something new for a device to sign; nothing is kept."""
        expires = math.ceil(self._clock() + CHALLENGE_S)
        nonce = self._seal(f"challenge {device_id}", secrets.token_hex(_NONCE_BYTES), expires)
        return Challenge(nonce=nonce, expires_in_s=CHALLENGE_S)

    def open_challenge(self, device_id: str, nonce: str) -> tuple[str, int]:
        """Return what makes a challenge the only one of its kind, and when it ends.

        Raises:
            StaleChallenge: It is not of this server for this device, or too old.
        """
        opened = self._open(f"challenge {device_id}", nonce)
        if opened is None:
            raise StaleChallenge("the challenge is not of this server for this device: ask anew")
        if self._clock() >= opened[1]:
            raise StaleChallenge(f"the challenge is over {CHALLENGE_S:.0f} s old: ask for another")
        return opened

    def use_up(self, tx: Transaction, challenge: tuple[str, int]) -> None:
        """Let an opened challenge be good no more, in the transaction of what it is used for.

        Raises:
            StaleChallenge: It was used before.
        """
        random, expires = challenge
        if not tx.take_nonce(random, expires, self._clock()):
            raise StaleChallenge("the challenge was used before: ask for another")

    def access_token(self, device: DeviceRow) -> AccessToken:
        """Return a token that opens the device's endpoints for a while."""
        expires = math.ceil(self._clock() + self._ttl_s)
        token = self._seal("access", f"{device.id}-{device.key_number}", expires)
        return AccessToken(access_token=token, expires_in_s=self._ttl_s)

    def read_access_token(self, token: str) -> tuple[str, int]:
        """Return whose token it is, and the number of the device's key it was given to.

        Raises:
            NotAuthorized: It was not made by this server.
            TokenExpired: It was, and its time is over.
        """
        opened = self._open("access", token)
        if opened is None:
            raise NotAuthorized("the access token is unknown to this server: join it again")
        subject, expires = opened
        if self._clock() >= expires:
            raise TokenExpired("the access token has expired: sign a new challenge")
        device_id, _, key_number = subject.rpartition("-")
        return device_id, int(key_number)

    def _seal(self, purpose: str, subject: str, expires: int) -> str:
        key = self._keys()[-1]
        text = f"{_PREFIX}.{key.number}.{subject}.{expires}"
        return f"{text}.{_mac(key, purpose, text)}"

    def _open(self, purpose: str, sealed: str) -> tuple[str, int] | None:
        """Return subject and end of what this server sealed; None if it did not."""
        parts = sealed.split(".")
        if len(parts) != _PARTS or not sealed.isascii():
            return None
        _, number, subject, expires, mac = parts
        if not (_is_number(number) and _is_number(expires)):
            return None
        key = self._key(int(number))
        text = sealed.rpartition(".")[0]
        if key is None or not hmac.compare_digest(mac, _mac(key, purpose, text)):
            return None
        return subject, int(expires)

    def _key(self, number: int) -> AccessKeyRow | None:
        keys = self._keys()
        if number > keys[-1].number:
            keys = self._read_keys()  # another replica may have seen a rotation before this one
        now = self._clock()
        return next((key for key in keys if key.number == number and _is_valid(key, now)), None)

    def _keys(self) -> list[AccessKeyRow]:
        read_at, keys = self._known
        if keys and abs(self._clock() - read_at) < KEYS_KNOWN_S:
            return keys
        return self._read_keys()

    def _read_keys(self) -> list[AccessKeyRow]:
        now = self._clock()
        with self._store.read() as tx:
            keys = tx.access_keys()
        if not keys:
            with self._store.write() as tx:
                if not tx.access_keys():
                    _add_key(tx, 1, now)
                keys = tx.access_keys()
        self._known = (now, keys)
        return keys


def rotate_access_key(store: Store, who: str, now: float, overlap_s: float) -> int:
    """Let a new key make all challenges and access tokens; return its number.

    Args:
        store: Where the keys are.
        who: For the audit log.
        now: Seconds since 1970.
        overlap_s: Seconds for which what the keys before made goes on to be good.
    """
    with store.write() as tx:
        keys = tx.access_keys()
        number = keys[-1].number + 1 if keys else 1
        tx.retire_access_keys(now + overlap_s)
        _add_key(tx, number, now)
        record(tx, now, who, "credentials.rotate", f"key {number}, overlap {overlap_s:.0f} s")
    return number


def _add_key(tx: Transaction, number: int, now: float) -> None:
    secret = secrets.token_hex(_SECRET_BYTES)
    tx.add_access_key(AccessKeyRow(number=number, secret=secret, created_at=now))


def _mac(key: AccessKeyRow, purpose: str, text: str) -> str:
    message = f"{purpose}\0{text}".encode("utf-8", "surrogatepass")
    return hmac.new(bytes.fromhex(key.secret), message, hashlib.sha256).hexdigest()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS


def _is_valid(key: AccessKeyRow, now: float) -> bool:
    return key.valid_until is None or now < key.valid_until
