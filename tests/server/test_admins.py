"""Admins: a token each, a role each, and a log of what they did."""

import logging

import pytest

from edge_sdk.errors import ConfigError, NotAllowed, NotAuthorized, NotFound, Revoked, TokenExpired
from server.access.admins import ROLES, authenticate_admin, create_admin, revoke_admin
from server.access.auth import make_enrolment_token
from server.access.tokens import hash_token


def create(site, name="ann", role="read", expires_at=None):
    return create_admin(site.store, name, role, expires_at, "root", site.clock())


def authenticate(site, token, role="read"):
    return authenticate_admin(site.store, token, role, site.clock())


@pytest.mark.parametrize("has", ROLES)
@pytest.mark.parametrize("needs", ROLES)
def test_a_role_may_do_what_the_roles_below_it_may_and_no_more(site, has, needs):
    token = create(site, role=has)
    if ROLES.index(has) >= ROLES.index(needs):
        assert authenticate(site, token, needs).name == "ann"
    else:
        with pytest.raises(NotAllowed, match=f"has role {has}; this needs {needs}"):
            authenticate(site, token, needs)


def test_an_unknown_token_is_no_admins(site):
    create(site)
    for token in (None, "", "guess", make_enrolment_token(site.store, 0.0), "\ud800"):
        with pytest.raises(NotAuthorized):
            authenticate(site, token)


def test_an_expired_admin_token_opens_nothing(site):
    token = create(site, expires_at=site.clock() + 5)
    authenticate(site, token)
    site.clock.now += 5
    with pytest.raises(TokenExpired):
        authenticate(site, token)


def test_a_revoked_admin_token_opens_nothing(site):
    token = create(site, role="admin")
    revoke_admin(site.store, "ann", "root", site.clock())
    with pytest.raises(Revoked):
        authenticate(site, token)
    with pytest.raises(NotFound):
        revoke_admin(site.store, "bob", "root", site.clock())


def test_a_name_is_never_given_twice_so_that_the_log_stays_true(site):
    create(site)
    revoke_admin(site.store, "ann", "root", site.clock())
    with pytest.raises(ConfigError, match="another name"):
        create(site, role="admin")


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb"])
def test_a_name_that_cannot_be_shown_is_refused(site, name):
    with pytest.raises(ConfigError, match="printable"):
        create(site, name)


def test_what_was_done_is_logged_with_who_and_when_and_without_the_token(site, caplog):
    caplog.set_level(logging.DEBUG)
    token = create(site, role="operate")
    site.clock.now += 1
    revoke_admin(site.store, "ann", "bob", site.clock())
    revoke_admin(site.store, "ann", "bob", site.clock())
    with site.store.read() as tx:
        rows = tx.audit(10)
        (admin,) = tx.admins()
    assert [(row.number, row.at, row.who, row.action, row.subject) for row in rows] == [
        (2, site.clock(), "bob", "admin.revoke", "ann"),
        (1, site.clock() - 1, "root", "admin.create", "ann with role operate"),
    ]
    assert admin.token_hash == hash_token(token)
    assert token not in caplog.text
