"""How devices get in, without HTTP."""

import logging
from dataclasses import replace

import pytest

from edge_sdk.errors import (
    BadProof,
    ConfigError,
    NotAuthorized,
    NotFound,
    Revoked,
    StaleChallenge,
    TokenExpired,
    TokenUsedUp,
)
from edge_sdk.identity.device_key import DeviceKey, make_private_key
from edge_sdk.wire.credentials import AccessRequest, EnrolRequest, KeyChange
from edge_sdk.wire.proofs import access_statement, enrolment_statement, key_change_statement
from server.access.auth import (
    Gate,
    has_enrolment_token,
    make_enrolment_token,
    revoke_device,
    revoke_enrolment_token,
)
from server.access.credentials import CHALLENGE_S, Credentials
from server.access.tokens import hash_token
from tests.server.tasks import TTL_S, in_parallel


def new_key() -> DeviceKey:
    return DeviceKey(make_private_key())


def enrol(site, token, key=None, name="phone", **changes):
    key = key or new_key()
    message = {
        "enrolment_token": token,
        "name": name,
        "public_key": key.public_key,
        "proof": key.sign(enrolment_statement(token, key.public_key)),
    }
    return site.gate.enrol(EnrolRequest(**{**message, **changes}))


def answer(device_id, nonce, key, claimed_id=None):
    return AccessRequest(
        nonce=nonce, signature=key.sign(access_statement(claimed_id or device_id, nonce))
    )


def access(site, device_id, key):
    nonce = site.gate.challenge(device_id).nonce
    return site.gate.give_access(device_id, answer(device_id, nonce, key)).access_token


def key_change(device_id, nonce, old, new, **changes):
    statement = key_change_statement(device_id, nonce, old.public_key, new.public_key)
    message = KeyChange(
        nonce=nonce,
        public_key=new.public_key,
        signature=old.sign(statement),
        new_signature=new.sign(statement),
    )
    return replace(message, **changes)


@pytest.fixture
def token(site):
    return make_enrolment_token(site.store, site.clock())


@pytest.fixture
def key():
    return new_key()


@pytest.fixture
def device_id(site, token, key):
    return enrol(site, token, key).device_id


def row_of(site, device_id):
    with site.store.read() as tx:
        return tx.device(device_id)


def test_a_device_enrols_with_a_token_and_is_known_by_its_key_afterwards(site, device_id, key):
    device = site.gate.authenticate(access(site, device_id, key))
    assert (device.id, device.name, device.public_key) == (device_id, "phone", key.public_key)


def test_one_enrolment_token_lets_many_devices_in_each_with_its_own_identity(site, token):
    assert enrol(site, token).device_id != enrol(site, token).device_id


def test_an_unknown_enrolment_token_lets_nobody_in(site, token):
    for guess in ("", "guess", "\ud800", token + "x"):
        with pytest.raises(NotAuthorized, match="ask the operator"):
            enrol(site, guess)


def test_a_key_that_the_device_does_not_hold_is_not_enrolled(site, token, key):
    other = new_key()
    statement = enrolment_statement(token, key.public_key)
    for proof in (other.sign(statement), key.sign(enrolment_statement("x", key.public_key))):
        with pytest.raises(BadProof):
            enrol(site, token, key, proof=proof)
    with pytest.raises(BadProof):
        enrol(site, token, key, public_key="ff" * 32)
    with site.store.read() as tx:
        assert tx.devices() == []


def test_a_token_of_two_uses_lets_two_devices_in_also_if_many_ask_at_once(site):
    token = make_enrolment_token(site.store, 0.0, uses=2)
    results = in_parallel([lambda: enrol(site, token) for _ in range(6)])
    assert sum(not isinstance(x, Exception) for x in results) == 2
    assert [x for x in results if isinstance(x, Exception) and type(x) is not TokenUsedUp] == []
    with site.store.read() as tx:
        assert len(tx.devices()) == 2


def test_asking_again_with_the_same_key_is_the_same_device_and_uses_nothing_up(site, key):
    token = make_enrolment_token(site.store, 0.0, uses=1)
    first = enrol(site, token, key)
    assert enrol(site, token, key) == first
    with pytest.raises(TokenUsedUp):
        enrol(site, token)


def test_an_expired_enrolment_token_lets_nobody_in(site):
    token = make_enrolment_token(site.store, 0.0, expires_at=site.clock() + 10)
    enrol(site, token)
    site.clock.now += 10
    with pytest.raises(TokenExpired):
        enrol(site, token)
    assert not has_enrolment_token(site.store, site.clock())


def test_a_revoked_enrolment_token_lets_nobody_in_and_those_who_are_in_stay(site, token, key):
    device_id = enrol(site, token, key).device_id
    with site.store.read() as tx:
        (row,) = tx.enrolment_tokens()
    revoke_enrolment_token(site.store, row.id, "ann", 2.0)
    with pytest.raises(Revoked):
        enrol(site, token)
    assert site.gate.authenticate(access(site, device_id, key)).id == device_id
    with pytest.raises(NotFound, match="token list"):
        revoke_enrolment_token(site.store, "none", "ann", 2.0)


def test_the_id_of_a_token_is_no_secret_and_opens_nothing(site, token):
    with site.store.read() as tx:
        (row,) = tx.enrolment_tokens()
    assert row.id not in token
    with pytest.raises(NotAuthorized):
        enrol(site, row.id)


@pytest.mark.parametrize("changes", [{"uses": 0}, {"uses": 2**31}, {"name": "tab\t"}])
def test_a_token_that_cannot_be_is_refused(site, changes):
    with pytest.raises(ConfigError):
        make_enrolment_token(site.store, 0.0, **changes)
    with site.store.read() as tx:
        assert tx.enrolment_tokens() == []


def test_a_missing_or_unknown_access_token_is_refused(site, token, device_id, key):
    good = access(site, device_id, key)
    spoilt = good[:-1] + ("0" if good[-1] != "0" else "1")
    for given in (None, "", "guess", token, "....", spoilt, good + ".", "\u00b9.1.a-1.9.x"):
        with pytest.raises(NotAuthorized):
            site.gate.authenticate(given)


def test_an_access_token_opens_nothing_after_its_time(site, device_id, key):
    token = access(site, device_id, key)
    site.clock.now += TTL_S - 1
    assert site.gate.authenticate(token).id == device_id
    site.clock.now += 1
    with pytest.raises(TokenExpired):
        site.gate.authenticate(token)


def test_an_access_token_cannot_be_made_to_live_longer_or_to_be_anothers(
    site, token, device_id, key
):
    other = enrol(site, token).device_id
    good = access(site, device_id, key)
    prefix, number, subject, expires, mac = good.split(".")
    for parts in (
        (prefix, number, subject, str(int(expires) + 1), mac),
        (prefix, number, f"{other}-1", expires, mac),
        (prefix, number, f"{device_id}-2", expires, mac),
        (prefix, "2", subject, expires, mac),
    ):
        with pytest.raises(NotAuthorized):
            site.gate.authenticate(".".join(parts))


def test_a_challenge_is_good_once(site, device_id, key):
    nonce = site.gate.challenge(device_id).nonce
    site.gate.give_access(device_id, answer(device_id, nonce, key))
    with pytest.raises(StaleChallenge, match="used before"):
        site.gate.give_access(device_id, answer(device_id, nonce, key))


def test_a_challenge_answered_many_times_at_once_is_good_once(site, device_id, key):
    request = answer(device_id, site.gate.challenge(device_id).nonce, key)
    results = in_parallel([lambda: site.gate.give_access(device_id, request) for _ in range(4)])
    assert sorted(type(x).__name__ for x in results) == ["AccessToken"] + ["StaleChallenge"] * 3


def test_an_old_challenge_is_refused_also_when_its_use_is_forgotten(site, device_id, key):
    nonce = site.gate.challenge(device_id).nonce
    site.gate.give_access(device_id, answer(device_id, nonce, key))
    site.clock.now += CHALLENGE_S + 1
    access(site, device_id, key)
    with pytest.raises(StaleChallenge, match="old"):
        site.gate.give_access(device_id, answer(device_id, nonce, key))


def test_a_challenge_of_another_device_or_made_up_is_refused(site, token, device_id, key):
    other = enrol(site, token).device_id
    good = site.gate.challenge(device_id).nonce
    for nonce in (site.gate.challenge(other).nonce, "made up", "", good + "0", good[:-1]):
        with pytest.raises(StaleChallenge):
            site.gate.give_access(device_id, answer(device_id, nonce, key))


def test_a_foreign_signature_is_refused_and_uses_the_challenge_not_up(site, device_id, key):
    nonce = site.gate.challenge(device_id).nonce
    with pytest.raises(BadProof):
        site.gate.give_access(device_id, answer(device_id, nonce, new_key()))
    with pytest.raises(BadProof):
        site.gate.give_access(device_id, answer(device_id, nonce, key, claimed_id="another"))
    assert site.gate.give_access(device_id, answer(device_id, nonce, key)).access_token


def test_a_device_nobody_enrolled_gets_no_access(site, device_id, key):
    with pytest.raises(NotAuthorized):
        access(site, "nobody", key)


def test_a_signature_for_one_purpose_is_none_for_another(site, token, device_id, key):
    """What a device signs to enrol or to change its key gives nobody access."""
    nonce, new = site.gate.challenge(device_id).nonce, new_key()
    for statement in (
        enrolment_statement(nonce, key.public_key),
        key_change_statement(device_id, nonce, key.public_key, new.public_key),
    ):
        request = AccessRequest(nonce=nonce, signature=key.sign(statement))
        with pytest.raises(BadProof):
            site.gate.give_access(device_id, request)


def test_a_revoked_device_is_refused_at_once_and_for_good(site, token, device_id, key):
    good = access(site, device_id, key)
    assert revoke_device(site.store, device_id, "ann", 5.0).revoked_at == 5.0
    for attempt in (
        lambda: site.gate.authenticate(good),
        lambda: access(site, device_id, key),
        lambda: enrol(site, token, key),
    ):
        with pytest.raises(Revoked):
            attempt()
    nonce = site.gate.challenge(device_id).nonce
    with pytest.raises(Revoked):
        site.gate.change_key(device_id, key_change(device_id, nonce, key, new_key()))
    assert revoke_device(site.store, device_id, "bob", 9.0).revoked_at == 5.0, "once is once"
    with pytest.raises(NotFound, match="device list"):
        revoke_device(site.store, "nobody", "ann", 5.0)


def test_a_new_key_takes_over_and_what_the_old_one_opened_is_closed(site, device_id, key):
    before, new = access(site, device_id, key), new_key()
    nonce = site.gate.challenge(device_id).nonce
    after = site.gate.change_key(device_id, key_change(device_id, nonce, key, new)).access_token
    assert site.gate.authenticate(after).public_key == new.public_key
    assert site.gate.authenticate(access(site, device_id, new)).key_number == 2
    with pytest.raises(NotAuthorized, match="older key"):
        site.gate.authenticate(before)
    with pytest.raises(BadProof):
        access(site, device_id, key)


def test_a_key_change_needs_both_keys_a_fresh_challenge_and_an_unused_key(
    site, token, device_id, key
):
    new, taken = new_key(), new_key()
    enrol(site, token, taken)
    nonce = site.gate.challenge(device_id).nonce
    good = key_change(device_id, nonce, key, new)
    other_new = new_key()
    wrong = {
        BadProof: [
            replace(good, signature=good.new_signature),
            replace(good, new_signature=good.signature),
            replace(good, public_key=other_new.public_key),
            key_change("another", nonce, key, new),
        ],
        StaleChallenge: [key_change(device_id, "made up", key, new)],
        ConfigError: [key_change(device_id, nonce, key, known) for known in (taken, key)],
    }
    for error, requests in wrong.items():
        for request in requests:
            with pytest.raises(error):
                site.gate.change_key(device_id, request)
    assert row_of(site, device_id).public_key == key.public_key
    site.gate.change_key(device_id, good)
    back = key_change(device_id, nonce, new, key)
    with pytest.raises(StaleChallenge, match="used before"):
        site.gate.change_key(device_id, back)


def test_a_token_of_another_server_is_unknown(site, token, device_id, key, tmp_path):
    """Another server has other keys, even if it knows the same device."""
    from tests.server.tasks import Site

    other = Site(tmp_path / "other", site.clock)
    with other.store.write() as tx:
        tx.add_device(row_of(site, device_id))
    foreign = access(other, device_id, key)
    assert other.gate.authenticate(foreign).id == device_id
    with pytest.raises(NotAuthorized, match="unknown to this server"):
        site.gate.authenticate(foreign)
    nonce = other.gate.challenge(device_id).nonce
    with pytest.raises(StaleChallenge):
        site.gate.give_access(device_id, answer(device_id, nonce, key))
    other.store.close()


def test_any_replica_takes_what_another_gave(site, device_id, key):
    replica = Gate(site.store, site.clock, Credentials(site.store, site.clock, TTL_S))
    nonce = replica.challenge(device_id).nonce
    token = site.gate.give_access(device_id, answer(device_id, nonce, key)).access_token
    assert replica.authenticate(token).id == device_id


def test_authentication_reads_one_row_and_writes_nothing(site, device_id, key, monkeypatch):
    token = access(site, device_id, key)
    statements = []
    from sqlalchemy import event

    event.listen(
        site.store._engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(statement),
    )
    site.gate.authenticate(token)
    (query,) = [text for text in statements if not text.startswith("BEGIN")]
    assert "FROM devices" in query
    assert "WHERE devices.id = " in query


def test_a_refused_guess_costs_no_look_at_the_database(site, device_id, key, monkeypatch):
    access(site, device_id, key)
    monkeypatch.setattr(site.store, "read", lambda: pytest.fail("it looked"))
    for guess in ("guess", f"edge.1.{device_id}-1.9999999999." + "0" * 64):
        with pytest.raises(NotAuthorized):
            site.gate.authenticate(guess)


def test_secrets_are_neither_stored_nor_logged(site, caplog):
    caplog.set_level(logging.DEBUG)
    token, private_key = make_enrolment_token(site.store, 1.0), make_private_key()
    key = DeviceKey(private_key)
    device_id = enrol(site, token, key).device_id
    given = access(site, device_id, key)
    site.gate.authenticate(given)
    site.store.close()
    stored = b"".join(
        path.read_bytes() for path in site.settings.state.rglob("*") if path.is_file()
    )
    assert hash_token(token).encode() in stored
    for secret in (token, private_key, given):
        assert secret.encode() not in stored
        assert secret not in caplog.text


def test_the_server_knows_whether_anybody_could_enrol(site):
    assert not has_enrolment_token(site.store, 1.0)
    make_enrolment_token(site.store, 1.0, uses=1)
    assert has_enrolment_token(site.store, 1.0)


def test_no_token_looks_like_a_flag(site, monkeypatch):
    """A token that began with a dash could not follow ``--token`` on a command line."""
    monkeypatch.setattr("server.access.tokens.secrets.token_urlsafe", lambda size: "-" * size)
    assert make_enrolment_token(site.store, site.clock())[0].isalpha()
