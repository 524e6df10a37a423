"""Admins: who operates the server with a token and a role."""

from __future__ import annotations

import hmac
from typing import get_args

from edge_sdk.errors import ConfigError, NotAllowed, NotAuthorized, NotFound, Revoked, TokenExpired
from server.access.audit import record
from server.access.tokens import hash_token, new_token
from server.storage.access_store import AdminRow, Role
from server.storage.store import Store

ROLES: tuple[Role, ...] = get_args(Role)
"""From the least to the most; each may do what the ones before it may."""

_MOST_NAME_CHARACTERS = 100


def create_admin(
    store: Store, name: str, role: Role, expires_at: float | None, who: str, now: float
) -> str:
    """Make an admin and return its token; only the token's hash is kept.

    Args:
        store: Where admins are.
        name: For the audit log; never given twice.
        role: What it may do.
        expires_at: Seconds since 1970; None for never.
        who: For the audit log.
        now: Seconds since 1970.

    Raises:
        ConfigError: The name is taken, or no name.
    """
    if not (1 <= len(name) <= _MOST_NAME_CHARACTERS and name.isprintable()):
        raise ConfigError(f"admin name {name!r} must be 1 to 100 printable characters")
    token = new_token("admin")
    row = AdminRow(
        name=name, role=role, token_hash=hash_token(token), created_at=now, expires_at=expires_at
    )
    with store.write() as tx:
        if tx.admin(name) is not None:
            raise ConfigError(
                f"there is or was an admin {name!r}: take another name, for the audit log's sake"
            )
        tx.add_admin(row)
        record(tx, now, who, "admin.create", f"{name} with role {role}")
    return token


def revoke_admin(store: Store, name: str, who: str, now: float) -> None:
    """End what the token of an admin opens; again changes nothing.

    Raises:
        NotFound: There is no such admin.
    """
    with store.write() as tx:
        found = tx.admin(name)
        if found is None:
            raise NotFound(f"there is no admin {name!r}")
        if found.revoked_at is None:
            tx.revoke_admin(name, now)
            record(tx, now, who, "admin.revoke", name)


def authenticate_admin(store: Store, token: str | None, role: Role, now: float) -> AdminRow:
    """Return the admin a token belongs to, if it may do what a role may.

    Raises:
        NotAuthorized: No token, or no admin's.
        TokenExpired: The token's time is over.
        Revoked: It was revoked.
        NotAllowed: Its role is not enough.
    """
    if not token:
        raise NotAuthorized("send an admin token as 'Authorization: Bearer <token>'")
    given = hash_token(token)
    with store.read() as tx:
        admin = tx.admin_by_token(given)
    if admin is None or not hmac.compare_digest(given, admin.token_hash):
        raise NotAuthorized("the token is no admin's on this server: ask for one")
    if admin.revoked_at is not None:
        raise Revoked(f"the token of admin {admin.name!r} was revoked: ask for another")
    if admin.expires_at is not None and now >= admin.expires_at:
        raise TokenExpired(f"the token of admin {admin.name!r} has expired: ask for another")
    if ROLES.index(admin.role) < ROLES.index(role):
        raise NotAllowed(f"admin {admin.name!r} has role {admin.role}; this needs {role}")
    return admin
