"""Who may talk to the server: the rows, and what a transaction does with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Role = Literal["read", "operate", "admin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentTokenRow:
    """One enrolment token; times in seconds since 1970.

    Attributes:
        id: Names it to the operator; not secret.
        token_hash: SHA-256 of the token.
        name: For people.
        created_at: When it was made.
        expires_at: From when on it lets nobody in; None for never.
        uses_left: Devices it still lets in; None for any number.
        revoked_at: When the operator revoked it.
        relay_for: Devices that what it lets in may speak for, as a relay; None for a device.
    """

    id: str
    token_hash: str
    name: str
    created_at: float
    expires_at: float | None = None
    uses_left: int | None = None
    revoked_at: float | None = None
    relay_for: int | None = None

    def is_open(self, now: float) -> bool:
        """Say whether a new device could enrol with it."""
        is_alive = self.expires_at is None or now < self.expires_at
        return self.revoked_at is None and is_alive and self.uses_left != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """One enrolled device; times in seconds since 1970.

    Attributes:
        id: Given by the server.
        name: For people.
        public_key: Its Ed25519 key, 64 hex digits.
        enrolled_at: When it was let in.
        key_number: How many keys it has had; from 1.
        enrolled_with: Id of its enrolment token; None if it came with an older release.
        revoked_at: When the operator revoked it.
        relay_for: Devices it may speak for, as a relay; None if it speaks for itself only.
    """

    id: str
    name: str
    public_key: str
    enrolled_at: float
    key_number: int = 1
    enrolled_with: str | None = None
    revoked_at: float | None = None
    relay_for: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKeyRow:
    """One key that challenges and access tokens are made with.

    Attributes:
        number: From 1; the largest one makes new ones.
        secret: 64 hex digits.
        created_at: Seconds since 1970.
        valid_until: When what it made ends at the latest; None for the newest key.
    """

    number: int
    secret: str
    created_at: float
    valid_until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminRow:
    """One person or program that operates the server; times in seconds since 1970.

    Attributes:
        name: Who it is, also in the audit log; never given twice.
        role: What it may do; each role includes the ones before it.
        token_hash: SHA-256 of the token.
        created_at: When it was made.
        expires_at: From when on the token opens nothing; None for never.
        revoked_at: When it was revoked.
    """

    name: str
    role: Role
    token_hash: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One thing an operator changed.

    Attributes:
        number: From 1, in the order of the changes.
        at: Seconds since 1970.
        who: Name of the admin, or of the user at the server's machine.
        action: Such as ``device.revoke``.
        subject: What it was done to; never a secret.
    """

    number: int
    at: float
    who: str
    action: str
    subject: str


class AccessTransaction(Protocol):
    """Tokens, devices, admins, and what they did."""

    def add_enrolment_token(self, row: EnrolmentTokenRow) -> None:
        """Insert an enrolment token."""

    def enrolment_token(self, token_hash: str) -> EnrolmentTokenRow | None:
        """Return the enrolment token with this hash."""

    def enrolment_tokens(self) -> list[EnrolmentTokenRow]:
        """Return all enrolment tokens, oldest first."""

    def update_enrolment_token(self, row: EnrolmentTokenRow) -> None:
        """Overwrite the uses and the revocation of an enrolment token."""

    def add_device(self, row: DeviceRow) -> None:
        """Insert a device."""

    def device(self, device_id: str) -> DeviceRow | None:
        """Return a device."""

    def device_by_key(self, public_key: str) -> DeviceRow | None:
        """Return the device a public key belongs to."""

    def devices(self) -> list[DeviceRow]:
        """Return all devices in the order they enrolled."""

    def update_device(self, row: DeviceRow) -> None:
        """Overwrite the key and the revocation of a device."""

    def add_access_key(self, row: AccessKeyRow) -> None:
        """Insert a key that makes access tokens."""

    def access_keys(self) -> list[AccessKeyRow]:
        """Return all keys that make or made access tokens, oldest first."""

    def retire_access_keys(self, valid_until: float) -> None:
        """Let what the present keys made end at a time, if it would not end earlier."""

    def take_nonce(self, nonce: str, expires_at: float, now: float) -> bool:
        """Say whether a nonce is used for the first time, and remember it until it expires."""

    def upload_bytes(self, device_id: str, day: int) -> int:
        """Return how much a device sent on a day (UTC, counted from 1970), taken or not."""

    def add_wasted_bytes(self, device_id: str, day: int, size_bytes: int) -> None:
        """Count bytes that a device sent and that became no accepted update."""

    def add_admin(self, row: AdminRow) -> None:
        """Insert an admin."""

    def admin(self, name: str) -> AdminRow | None:
        """Return an admin."""

    def admin_by_token(self, token_hash: str) -> AdminRow | None:
        """Return the admin whose token has this hash."""

    def admins(self) -> list[AdminRow]:
        """Return all admins by name."""

    def revoke_admin(self, name: str, now: float) -> None:
        """Let the token of an admin open nothing from now on."""

    def add_audit(self, at: float, who: str, action: str, subject: str) -> None:
        """Append to the audit log."""

    def audit(self, last: int) -> list[AuditRow]:
        """Return the last entries of the audit log, newest first."""
