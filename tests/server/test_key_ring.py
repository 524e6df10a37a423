"""One key speaks for all replicas; a new one takes over without a gap."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_sdk.errors import BadSignature, ConfigError, StorageError
from edge_sdk.wire.manifest import (
    Manifest,
    Pointer,
    Succession,
    canonical,
    follow_successions,
    open_signed,
)
from server.access.signing import make_key, open_key, read_key, replace_key
from tests.server.registries import Signer
from tests.server.tasks import tiny_spec


@pytest.fixture
def signer(site):
    site.add_task(tiny_spec(quorum=1, cohort_size=1, rounds=5))
    return Signer(site)


def test_the_first_key_is_the_one_in_the_file(signer):
    assert signer.keys.newest().public_key == open_key(signer.path).public_key
    assert signer.keys.newest().number == 1
    assert signer.keys.successions() == []


def test_replicas_that_share_the_file_sign_alike(signer):
    assert Signer(signer.site).registry.manifest("tiny", 0) == signer.registry.manifest("tiny", 0)


def test_a_replica_with_a_key_of_its_own_does_not_start(signer):
    signer.registry.prepare()
    other = Signer(signer.site, "other.pem")
    own = open_key(other.path)
    with pytest.raises(ConfigError, match=rf"holds key {own.key_id}.* signing_key"):
        other.registry.prepare()
    assert len(_keys(signer)) == 1


def test_a_replica_that_lacks_the_key_says_so_and_makes_none(signer):
    signer.registry.prepare()
    other = Signer(signer.site, "lost.pem")
    with pytest.raises(ConfigError, match=r"lost\.pem is missing.* signing_key"):
        other.registry.prepare()
    assert not other.path.exists()


def test_a_new_key_is_signed_by_the_old_one_and_signs_all_there_is(signer):
    signer.close_round(tiny_spec(quorum=1, cohort_size=1, rounds=5))
    before = signer.keys.newest()
    manifests = [signer.manifest(version) for version in (0, 1)]
    pointer = signer.pointer()
    after = signer.keys.rotate("ada")
    assert (after.number, after.public_key) == (2, open_key(signer.path).public_key)
    (link,) = signer.keys.successions()
    assert open_signed(Succession, link, before.public_key).public_key == after.public_key
    assert follow_successions(before.public_key, [link]) == after.public_key
    assert [signer.manifest(version) for version in (0, 1)] == manifests
    assert signer.pointer() == pointer, "the same words under a new name"
    assert not signer.path.with_name("signing-key.pem.next").exists()


def test_keys_can_change_again_and_again(signer):
    first = signer.keys.newest().public_key
    for _ in range(3):
        newest = signer.keys.rotate("ada").public_key
    assert follow_successions(first, signer.keys.successions()) == newest
    assert signer.manifest(0).version == 0


def test_a_change_that_was_cut_off_before_its_last_step_is_finished_by_the_next_start(signer):
    signer.registry.prepare()
    old = read_key(signer.path)
    newest = signer.keys.rotate("ada")
    replace_key(signer.path.with_name("signing-key.pem.next"), read_key(signer.path))
    replace_key(signer.path, old)  # as a kill right after the commit leaves it
    Signer(signer.site).registry.prepare()
    assert read_key(signer.path).public_key == newest.public_key
    assert [file.name for file in signer.path.parent.glob("signing-key*")] == [signer.path.name]


def test_a_change_that_was_cut_off_before_it_counted_changed_nothing(signer):
    signer.registry.prepare()
    replace_key(signer.path.with_name("signing-key.pem.next"), make_key())
    signer.registry.prepare()
    assert read_key(signer.path).key_id == signer.keys.newest().key_id
    assert signer.keys.rotate("ada").number == 2


def test_what_was_changed_in_the_database_is_not_signed_again(signer):
    manifest = signer.registry.manifest("tiny", 0)
    forged = replace(manifest, payload=manifest.payload.replace('"version":0', '"version":9'))
    with signer.site.store.write() as tx:
        tx.replace_manifest("tiny", 0, canonical(forged).decode())
    with pytest.raises(BadSignature):
        signer.keys.rotate("mallory")
    assert len(_keys(signer)) == 1
    assert read_key(signer.path).key_id == signer.keys.newest().key_id


def test_a_new_key_that_cannot_be_kept_leaves_the_old_one_in_office(signer):
    signer.registry.prepare()
    signer.path.with_name("signing-key.pem.next").mkdir()
    with pytest.raises(StorageError):
        signer.keys.rotate("ada")
    assert len(_keys(signer)) == 1
    assert signer.pointer().version == 0


def test_kinds_are_kept_apart_when_everything_is_signed_again(signer):
    signer.registry.prepare()
    key = signer.keys.rotate("ada").public_key
    with pytest.raises(BadSignature):
        open_signed(Pointer, signer.registry.manifest("tiny", 0), key)
    assert open_signed(Manifest, signer.registry.manifest("tiny", 0), key).task == "tiny"


def _keys(signer):
    with signer.site.store.read() as tx:
        return tx.signing_keys()
