import logging

import pytest

from edge_sdk.errors import NotAuthorized
from edge_sdk.wire.messages import EnrolRequest
from server.auth import has_enrolment_token, hash_token, make_enrolment_token


def enrol(site, token, name="phone"):
    return site.coordinator.enrol(EnrolRequest(enrolment_token=token, name=name))


def test_a_device_enrols_with_a_token_and_is_known_by_its_own_afterwards(site):
    enrolment = enrol(site, make_enrolment_token(site.store, 1.0))
    device = site.coordinator.authenticate(enrolment.device_token)
    assert (device.id, device.name) == (enrolment.device_id, "phone")


def test_one_enrolment_token_lets_many_devices_in_each_with_its_own_identity(site):
    token = make_enrolment_token(site.store, 1.0)
    one, other = enrol(site, token), enrol(site, token)
    assert one.device_id != other.device_id
    assert one.device_token != other.device_token


def test_an_unknown_enrolment_token_lets_nobody_in(site):
    make_enrolment_token(site.store, 1.0)
    for token in ("", "guess", "\ud800"):
        with pytest.raises(NotAuthorized, match="ask the operator"):
            enrol(site, token)


def test_a_missing_or_unknown_device_token_is_refused(site):
    token = make_enrolment_token(site.store, 1.0)
    enrol(site, token)
    for given in (None, "", "guess", token):
        with pytest.raises(NotAuthorized):
            site.coordinator.authenticate(given)


def test_tokens_are_neither_stored_nor_logged(site, caplog):
    caplog.set_level(logging.DEBUG)
    token = make_enrolment_token(site.store, 1.0)
    enrolment = enrol(site, token)
    site.coordinator.authenticate(enrolment.device_token)
    site.store.close()
    stored = b"".join(
        path.read_bytes() for path in site.settings.state.rglob("*") if path.is_file()
    )
    for secret in (token, enrolment.device_token):
        assert secret.encode() not in stored
        assert hash_token(secret).encode() in stored
        assert secret not in caplog.text


def test_the_server_knows_whether_anybody_could_enrol(site):
    assert not has_enrolment_token(site.store)
    make_enrolment_token(site.store, 1.0)
    assert has_enrolment_token(site.store)


def test_no_token_looks_like_a_flag(site, monkeypatch):
    """A token that began with a dash could not follow ``--token`` on a command line."""
    monkeypatch.setattr("server.auth.secrets.token_urlsafe", lambda size: "-" * size)
    token = make_enrolment_token(site.store, site.clock())
    identity = site.coordinator.enrol(EnrolRequest(enrolment_token=token, name="a"))
    assert token[0].isalpha()
    assert identity.device_token[0].isalpha()
