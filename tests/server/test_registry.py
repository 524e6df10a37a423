"""Versions are signed once; the channel follows, is held, tried on some, and rolled back."""

from __future__ import annotations

import pytest

from edge_sdk.errors import ConfigError, NotFound, ServerFailed
from edge_sdk.wire.manifest import spec_digest
from server.access.signing import make_key, replace_key
from server.registry.registry import describe
from server.registry.registry_reports import version_reports
from server.rounds.coordinator import Coordinator
from tests.server.registries import Signer, close_round
from tests.server.tasks import BASE_DIGEST, in_parallel, tiny_spec


@pytest.fixture
def spec(site):
    return site.add_task(tiny_spec(quorum=2, cohort_size=2, rounds=9))


@pytest.fixture
def signer(site, spec):
    return Signer(site)


@pytest.fixture
def trained(signer, spec):
    """Versions 0 to 3, of which devices use the latest."""
    signer.registry.prepare()
    for seed in (1, 2, 3):
        signer.close_round(spec, seed)
    assert signer.pointer().version == 3
    return signer


def test_a_manifest_says_what_the_version_is_and_where_it_came_from(signer, spec, site):
    signer.close_round(spec)
    first, second = signer.manifest(0), signer.manifest(1)
    old, new = site.coordinator.adapters("tiny")
    assert (second.digest, second.size_bytes) == (new.digest, new.size_bytes)
    assert (second.round_number, second.created_at) == (1, new.created_at)
    assert (second.parent_version, second.parent_digest) == (0, old.digest)
    assert (first.parent_version, first.parent_digest, first.round_number) == (None, None, 0)
    assert (second.base_digest, second.spec_digest) == (BASE_DIGEST, spec_digest(spec.adapter))


def test_a_version_is_signed_when_its_round_closes_and_never_again(signer, spec, site):
    site.coordinator = Coordinator(
        site.store, site.blobs, site.clock, publish=signer.registry.catch_up
    )
    close_round(site, spec)
    with site.store.read() as tx:
        assert tx.unsigned_versions("tiny") == []
        text = tx.manifest("tiny", 1)
    site.clock.now += 100
    signer.registry.prepare()
    with site.store.read() as tx:
        assert tx.manifest("tiny", 1) == text


def test_all_versions_of_an_older_release_are_signed_at_the_start(signer, spec, site):
    close_round(site, spec)
    with site.store.read() as tx:
        assert tx.unsigned_versions("tiny") == [0, 1]
        assert tx.last_pointer("tiny") is None
    signer.registry.prepare()
    with site.store.read() as tx:
        assert tx.unsigned_versions("tiny") == []
        assert tx.last_pointer("tiny").version == 1


def test_readers_at_once_sign_once(signer, site):
    results = in_parallel([lambda: signer.registry.pointer("tiny")] * 6)
    assert len({signed.signature for signed in results}) == 1
    with site.store.read() as tx:
        assert len(tx.pointers("tiny")) == 1


def test_the_channel_follows_the_rounds_by_itself(signer, spec):
    seen = [signer.pointer()]
    for seed in (1, 2):
        signer.close_round(spec, seed)
        seen.append(signer.pointer())
    assert [pointer.version for pointer in seen] == [0, 1, 2]
    assert [pointer.sequence for pointer in seen] == [1, 2, 3]


def test_a_held_version_stays_until_the_operator_says_otherwise(trained, spec):
    trained.registry.hold("tiny", 2, "ada")
    trained.close_round(spec, 4)
    assert (trained.pointer().version, trained.pointer().sequence) == (2, 5)
    trained.registry.follow_latest("tiny", "ada")
    assert (trained.pointer().version, trained.pointer().sequence) == (4, 6)
    trained.close_round(spec, 5)
    assert trained.pointer().version == 5


def test_a_canary_leaves_the_others_where_they_are_through_new_rounds(trained, spec):
    trained.registry.hold("tiny", 1, "ada")
    row = trained.registry.start_canary("tiny", 3, 0.25, "ada")
    trained.close_round(spec, 4)
    pointer = trained.pointer()
    assert (pointer.version, pointer.canary_version, pointer.canary_share) == (1, 3, 0.25)
    assert pointer.sequence == row.sequence
    assert describe(row) == "version 3 for 0.25 of the devices, 1 for the others"


def test_a_canary_beside_a_channel_that_followed_holds_it(trained, spec):
    trained.registry.start_canary("tiny", 1, 0.5, "ada")
    trained.close_round(spec, 4)
    assert (trained.pointer().version, trained.pointer().canary_version) == (3, 1)


def test_promoting_the_canary_version_ends_the_canary(trained):
    trained.registry.hold("tiny", 1, "ada")
    trained.registry.start_canary("tiny", 3, 0.25, "ada")
    trained.registry.hold("tiny", 3, "ada")
    pointer = trained.pointer()
    assert (pointer.version, pointer.canary_version, pointer.canary_share) == (3, None, 0.0)


def test_a_roll_back_ends_the_canary_first_then_goes_back_version_by_version(trained):
    trained.registry.start_canary("tiny", 1, 0.5, "ada")
    versions = []
    for _ in range(4):
        trained.registry.roll_back("tiny", "ada")
        assert trained.pointer().canary_version is None
        versions.append(trained.pointer().version)
    assert versions == [3, 2, 1, 0]
    assert trained.pointer().sequence == 4 + 1 + 4
    with pytest.raises(ConfigError, match="older than 0"):
        trained.registry.roll_back("tiny", "ada")


def test_a_roll_back_holds_while_rounds_go_on_from_the_latest(trained, spec):
    trained.registry.roll_back("tiny", "ada")
    trained.close_round(spec, 4)
    assert trained.pointer().version == 2
    assert trained.manifest(4).parent_version == 3


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 7.0, float("nan")])
def test_a_canary_of_none_or_all_is_refused(trained, share):
    with pytest.raises(ConfigError, match="canary"):
        trained.registry.start_canary("tiny", 1, share, "ada")
    assert trained.pointer().sequence == 4


def test_a_canary_of_the_version_all_use_is_refused(trained):
    with pytest.raises(ConfigError, match="version 3 already"):
        trained.registry.start_canary("tiny", 3, 0.5, "ada")


def test_what_does_not_exist_is_not_found_and_changes_nothing(trained):
    registry = trained.registry
    for ask in (
        lambda: registry.hold("tiny", 9, "ada"),
        lambda: registry.start_canary("tiny", 9, 0.5, "ada"),
        lambda: registry.manifest("tiny", 9),
        lambda: registry.hold("none", 0, "ada"),
        lambda: registry.follow_latest("none", "ada"),
        lambda: registry.roll_back("none", "ada"),
        lambda: registry.pointer("none"),
        lambda: registry.catch_up("none"),
    ):
        with pytest.raises(NotFound):
            ask()
    assert trained.pointer().sequence == 4


def test_a_server_whose_key_was_swapped_fails_the_request_and_serves_what_is_signed(trained, spec):
    signed = trained.registry.pointer("tiny")
    replace_key(trained.path, make_key())
    assert trained.registry.pointer("tiny") == signed
    close_round(trained.site, spec, 4)
    with pytest.raises(ServerFailed, match="signing_key"):
        trained.registry.pointer("tiny")


def test_the_report_tells_lineage_losses_and_users(trained, site, spec):
    trained.registry.hold("tiny", 1, "ada")
    trained.registry.start_canary("tiny", 2, 0.25, "ada")
    trained.close_round(spec, 4, loss=0.75)
    trained.registry.catch_up("tiny")
    reports = version_reports(site.store, "tiny", 3)
    assert [report.channels for report in reports] == [[], ["stable"], ["canary"], [], ["latest"]]
    assert [report.canary_share for report in reports] == [0, 0, 0.25, 0, 0]
    assert [report.parent_version for report in reports] == [None, 0, 1, 2, 3]
    assert [report.updates for report in reports] == [0, 2, 2, 2, 2]
    assert [report.mean_loss for report in reports] == [None, 1.5, 1.5, 1.5, 0.75]
    assert all(report.is_signed for report in reports)
    assert not any(report.follows_latest for report in reports)


def test_a_quarantined_update_is_no_part_of_the_reported_mean(signer, spec, site):
    signer.close_round(spec)
    with site.store.write() as tx:
        odd = tx.updates("tiny", 1)[0]
        tx.quarantine(odd, "too large")
    assert version_reports(site.store, "tiny", 3)[1].updates == 1


def test_the_report_of_a_channel_that_follows_says_so(trained, site):
    *_, last = version_reports(site.store, "tiny", 3)
    assert (last.channels, last.follows_latest) == (["latest", "stable"], True)


def test_every_change_of_a_channel_or_key_is_in_the_audit_log_and_a_refused_one_is_not(
    trained, site
):
    trained.registry.hold("tiny", 1, "ada")
    trained.registry.start_canary("tiny", 2, 0.25, "ben")
    trained.registry.roll_back("tiny", "ada")
    trained.registry.follow_latest("tiny", "ada")
    old = trained.keys.newest().key_id
    new = trained.keys.rotate("cleo").key_id
    with pytest.raises(NotFound):
        trained.registry.hold("tiny", 9, "ada")
    with site.store.read() as tx:
        entries = [(row.who, row.action, row.subject) for row in reversed(tx.audit(5))]
    assert entries == [
        ("ada", "adapter.promote", "tiny: version 1"),
        ("ben", "adapter.canary", "tiny: version 2 for 0.25 of the devices, 1 for the others"),
        ("ada", "adapter.rollback", "tiny: version 1"),
        ("ada", "adapter.promote", "tiny: version 3, following the latest"),
        ("cleo", "key.rotate", f"{old} to {new}"),
    ]
