"""The keys that access tokens are made with: shared by replicas, and rotated."""

import pytest

from edge_sdk.errors import NotAuthorized, StaleChallenge
from server.access.credentials import KEYS_KNOWN_S, Credentials, rotate_access_key
from server.storage.access_store import DeviceRow
from tests.server.tasks import TTL_S, in_parallel

DEVICE = DeviceRow(id="d1", name="phone", public_key="ab" * 32, enrolled_at=0.0)


def replica(site):
    return Credentials(site.store, site.clock, TTL_S)


def token_of(credentials):
    return credentials.access_token(DEVICE).access_token


def rotate(site, overlap_s=TTL_S + 2 * KEYS_KNOWN_S):
    return rotate_access_key(site.store, "ann", site.clock(), overlap_s)


def test_replicas_that_start_at_once_agree_on_the_first_key(site):
    found = [replica(site) for _ in range(4)]
    tokens = in_parallel([lambda one=one: token_of(one) for one in found])
    for one in found:
        for token in tokens:
            assert one.read_access_token(token) == ("d1", 1)
    with site.store.read() as tx:
        assert len(tx.access_keys()) == 1


def test_tokens_of_the_old_key_live_to_their_end_after_a_rotation(site):
    one = replica(site)
    before = token_of(one)
    assert rotate(site) == 2
    site.clock.now += KEYS_KNOWN_S
    after = token_of(one)
    assert (before.split(".")[1], after.split(".")[1]) == ("1", "2")
    site.clock.now += TTL_S - KEYS_KNOWN_S - 1
    assert one.read_access_token(before) == one.read_access_token(after) == ("d1", 1)


def test_a_replica_that_has_not_noticed_a_rotation_takes_what_the_others_make(site):
    slow, quick = replica(site), replica(site)
    token_of(slow)
    rotate(site)
    assert slow.read_access_token(token_of(quick)) == ("d1", 1)
    site.clock.now += KEYS_KNOWN_S / 2
    unnoticed = replica(site)
    token_of(unnoticed)
    rotate(site)
    last = token_of(unnoticed)
    assert last.split(".")[1] == "2"
    assert quick.read_access_token(last) == ("d1", 1)


def test_a_leaked_key_makes_nothing_good_once_every_replica_noticed(site):
    one = replica(site)
    before, nonce = token_of(one), one.challenge("d1").nonce
    rotate(site, overlap_s=0.0)
    site.clock.now += KEYS_KNOWN_S
    with pytest.raises(NotAuthorized):
        one.read_access_token(before)
    with pytest.raises(StaleChallenge):
        one.open_challenge("d1", nonce)
    assert one.read_access_token(token_of(one)) == ("d1", 1)


def test_a_second_rotation_does_not_let_older_keys_live_longer(site):
    token_of(replica(site))
    rotate(site, overlap_s=10.0)
    rotate(site, overlap_s=1000.0)
    with site.store.read() as tx:
        ends = [key.valid_until for key in tx.access_keys()]
    assert ends == [site.clock() + 10, site.clock() + 1000, None]


def test_rotation_is_in_the_audit_log_without_the_key(site):
    token_of(replica(site))
    rotate(site)
    with site.store.read() as tx:
        (row,) = tx.audit(10)
        secrets = [key.secret for key in tx.access_keys()]
    assert (row.who, row.action) == ("ann", "credentials.rotate")
    assert not any(secret in row.subject for secret in secrets)


def test_challenges_are_all_different_and_good_for_their_device_only(site):
    one = replica(site)
    nonces = {one.challenge("d1").nonce for _ in range(20)}
    assert len(nonces) == 20
    for nonce in nonces:
        assert one.open_challenge("d1", nonce)
        with pytest.raises(StaleChallenge):
            one.open_challenge("d2", nonce)


def test_a_challenge_is_no_access_token_and_the_other_way_round(site):
    one = replica(site)
    with pytest.raises(NotAuthorized):
        one.read_access_token(one.challenge("d1").nonce)
    with pytest.raises(StaleChallenge):
        one.open_challenge("d1", token_of(one))


def test_a_clock_that_is_set_back_does_not_keep_a_rotation_unnoticed(site):
    one = replica(site)
    token_of(one)
    site.clock.now -= 10_000
    rotate(site)
    assert token_of(one).split(".")[1] == "2"
