"""What admins read over HTTP about devices and about each other's actions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One enrolled device; times in seconds since 1970.

    Attributes:
        device_id: Given by the server.
        name: For people.
        enrolled_at: When it was let in.
        enrolled_with: Id of its enrolment token; None if it came with an older release.
        key_number: How many keys it has had.
        revoked_at: When it was revoked, if it was.
    """

    device_id: str
    name: str
    enrolled_at: float
    enrolled_with: str | None
    key_number: int
    revoked_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One thing an operator changed.

    Attributes:
        number: From 1.
        at: Seconds since 1970.
        who: Name of the admin, or of the user at the server's machine.
        action: Such as ``device.revoke``.
        subject: What it was done to.
    """

    number: int
    at: float
    who: str
    action: str
    subject: str
