"""Tables of tokens, devices, admins and their actions, for people."""

from __future__ import annotations

import time
from collections.abc import Sequence

from server.commands import output
from server.storage.access_store import AdminRow, AuditRow, DeviceRow, EnrolmentTokenRow


def tokens(rows: Sequence[EnrolmentTokenRow], now: float) -> None:
    """Print enrolment tokens, without what is secret."""
    columns = ("id", "name", "made at (UTC)", "expires", "uses left", "relay for", "state")
    output.table(columns, [_token_cells(row, now) for row in rows])


def devices(rows: Sequence[DeviceRow]) -> None:
    """Print devices."""
    columns = ("id", "name", "enrolled at (UTC)", "with token", "keys", "relay for", "revoked")
    output.table(
        columns,
        [
            (
                row.id,
                row.name,
                _moment(row.enrolled_at),
                row.enrolled_with or "",
                row.key_number,
                row.relay_for or "",
                _moment(row.revoked_at),
            )
            for row in rows
        ],
    )


def admins(rows: Sequence[AdminRow], now: float) -> None:
    """Print admins, without what is secret."""
    columns = ("name", "role", "made at (UTC)", "expires", "state")
    cells = [
        (
            row.name,
            row.role,
            _moment(row.created_at),
            _moment(row.expires_at) or "never",
            _state(row, now),
        )
        for row in rows
    ]
    output.table(columns, cells)


def audit(rows: Sequence[AuditRow]) -> None:
    """Print what operators changed."""
    columns = ("at (UTC)", "who", "action", "subject")
    output.table(columns, [(_moment(row.at), row.who, row.action, row.subject) for row in rows])


def _token_cells(row: EnrolmentTokenRow, now: float) -> tuple[object, ...]:
    uses = "any" if row.uses_left is None else row.uses_left
    state = "used up" if row.uses_left == 0 else _state(row, now)
    expires = _moment(row.expires_at) or "never"
    relay_for = row.relay_for or ""
    return (row.id, row.name, _moment(row.created_at), expires, uses, relay_for, state)


def _state(row: EnrolmentTokenRow | AdminRow, now: float) -> str:
    if row.revoked_at is not None:
        return "revoked"
    is_over = row.expires_at is not None and now >= row.expires_at
    return "expired" if is_over else "good"


def _moment(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))
