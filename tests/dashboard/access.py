"""Admin tokens for tests."""

from __future__ import annotations

import secrets

from server.access.admins import create_admin
from server.storage.access_store import Role
from tests.server.tasks import Site


def admin_token(site: Site, role: Role) -> str:
    """A new token of a role that does not expire."""
    return create_admin(site.store, secrets.token_hex(4), role, None, "tests", site.clock())
