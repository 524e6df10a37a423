"""Tokens, devices and admins in SQL; see :class:`server.storage.access_store.AccessTransaction`."""

from __future__ import annotations

from sqlalchemy import delete, func, insert, or_, select, update

from server.storage import access_tables as tables
from server.storage.access_store import (
    AccessKeyRow,
    AdminRow,
    AuditRow,
    DeviceRow,
    EnrolmentTokenRow,
)
from server.storage.sql_rows import SqlRows
from server.storage.tables import updates

_DAY_S = 86_400


class SqlAccess(SqlRows):
    """The part of a transaction that says who may talk to the server."""

    def add_enrolment_token(self, row: EnrolmentTokenRow) -> None:
        """Insert an enrolment token."""
        self._insert(tables.enrolment_tokens, row)

    def enrolment_token(self, token_hash: str) -> EnrolmentTokenRow | None:
        """Return the enrolment token with this hash."""
        table = tables.enrolment_tokens
        query = select(table).where(table.c.token_hash == token_hash)
        return self._one(EnrolmentTokenRow, query)

    def enrolment_tokens(self) -> list[EnrolmentTokenRow]:
        """Return all enrolment tokens, oldest first."""
        table = tables.enrolment_tokens
        return self._all(EnrolmentTokenRow, select(table).order_by(table.c.created_at, table.c.id))

    def update_enrolment_token(self, row: EnrolmentTokenRow) -> None:
        """Overwrite the uses and the revocation of an enrolment token."""
        table = tables.enrolment_tokens
        self._connection.execute(
            update(table)
            .where(table.c.token_hash == row.token_hash)
            .values(uses_left=row.uses_left, revoked_at=row.revoked_at)
        )

    def add_device(self, row: DeviceRow) -> None:
        """Insert a device."""
        self._insert(tables.devices, row)

    def device(self, device_id: str) -> DeviceRow | None:
        """Return a device."""
        query = select(tables.devices).where(tables.devices.c.id == device_id)
        return self._one(DeviceRow, query)

    def device_by_key(self, public_key: str) -> DeviceRow | None:
        """Return the device a public key belongs to."""
        query = select(tables.devices).where(tables.devices.c.public_key == public_key)
        return self._one(DeviceRow, query)

    def devices(self) -> list[DeviceRow]:
        """Return all devices in the order they enrolled."""
        table = tables.devices
        return self._all(DeviceRow, select(table).order_by(table.c.enrolled_at, table.c.id))

    def update_device(self, row: DeviceRow) -> None:
        """Overwrite the key and the revocation of a device."""
        table = tables.devices
        self._connection.execute(
            update(table)
            .where(table.c.id == row.id)
            .values(public_key=row.public_key, key_number=row.key_number, revoked_at=row.revoked_at)
        )

    def add_access_key(self, row: AccessKeyRow) -> None:
        """Insert a key that makes access tokens."""
        self._insert(tables.access_keys, row)

    def access_keys(self) -> list[AccessKeyRow]:
        """Return all keys that make or made access tokens, oldest first."""
        table = tables.access_keys
        return self._all(AccessKeyRow, select(table).order_by(table.c.number))

    def retire_access_keys(self, valid_until: float) -> None:
        """Let what the present keys made end at a time, if it would not end earlier."""
        table = tables.access_keys
        is_later = or_(table.c.valid_until.is_(None), table.c.valid_until > valid_until)
        self._connection.execute(update(table).where(is_later).values(valid_until=valid_until))

    def take_nonce(self, nonce: str, expires_at: float, now: float) -> bool:
        """Say whether a nonce is used for the first time, and remember it until it expires."""
        table = tables.used_nonces
        self._connection.execute(delete(table).where(table.c.expires_at <= now))
        if self._names(select(table.c.nonce).where(table.c.nonce == nonce)):
            return False
        self._connection.execute(insert(table).values(nonce=nonce, expires_at=expires_at))
        return True

    def upload_bytes(self, device_id: str, day: int) -> int:
        """Return how much a device sent on a day (UTC, counted from 1970), taken or not."""
        taken = select(func.sum(updates.c.size_bytes)).where(
            updates.c.device_id == device_id,
            updates.c.accepted_at >= day * _DAY_S,
            updates.c.accepted_at < (day + 1) * _DAY_S,
        )
        table = tables.wasted_uploads
        wasted = select(table.c.size_bytes).where(
            table.c.device_id == device_id, table.c.day == day
        )
        return sum(int(self._connection.execute(query).scalar() or 0) for query in (taken, wasted))

    def add_wasted_bytes(self, device_id: str, day: int, size_bytes: int) -> None:
        """Count bytes that a device sent and that became no accepted update."""
        table = tables.wasted_uploads
        changed = self._connection.execute(
            update(table)
            .where(table.c.device_id == device_id, table.c.day == day)
            .values(size_bytes=table.c.size_bytes + size_bytes)
        )
        if changed.rowcount == 0:
            row = {"device_id": device_id, "day": day, "size_bytes": size_bytes}
            self._connection.execute(insert(table).values(**row))

    def add_admin(self, row: AdminRow) -> None:
        """Insert an admin."""
        self._insert(tables.admins, row)

    def admin(self, name: str) -> AdminRow | None:
        """Return an admin."""
        return self._one(AdminRow, select(tables.admins).where(tables.admins.c.name == name))

    def admin_by_token(self, token_hash: str) -> AdminRow | None:
        """Return the admin whose token has this hash."""
        query = select(tables.admins).where(tables.admins.c.token_hash == token_hash)
        return self._one(AdminRow, query)

    def admins(self) -> list[AdminRow]:
        """Return all admins by name."""
        return self._all(AdminRow, select(tables.admins).order_by(tables.admins.c.name))

    def revoke_admin(self, name: str, now: float) -> None:
        """Let the token of an admin open nothing from now on."""
        table = tables.admins
        self._connection.execute(update(table).where(table.c.name == name).values(revoked_at=now))

    def add_audit(self, at: float, who: str, action: str, subject: str) -> None:
        """Append to the audit log."""
        table = tables.audit
        last: int = self._connection.execute(select(func.max(table.c.number))).scalar() or 0
        row = AuditRow(number=last + 1, at=at, who=who, action=action, subject=subject)
        self._insert(table, row)

    def audit(self, last: int) -> list[AuditRow]:
        """Return the last entries of the audit log, newest first."""
        table = tables.audit
        return self._all(AuditRow, select(table).order_by(table.c.number.desc()).limit(last))
