"""What is quarantined: a too large update when it comes, an outlier when its round is frozen."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.wire import payload
from server.rounds.standing import due_round, store_round
from tests.server.tasks import ready, tiny_spec, update_body

K = 8


@pytest.fixture
def spec_of(site):
    """Make the task of a test, with seven devices on the server."""
    for name in "abcdefg":
        site.add_device(name)
    return lambda **policy: site.add_task(tiny_spec(**{"deadline_s": 100.0, **policy}))


def send(site, spec, scales):
    """One update of each device in the open round, with numbers of about its scale."""
    for device, scale in scales.items():
        work = site.coordinator.check_in(device, "tiny", ready(K)).assignment
        body = update_body(spec, work.k, ord(device), scale=scale)
        assert site.submit(device, "tiny", work.round_number, body).digest


def quarantined(site, number=1):
    with site.store.read() as tx:
        rows = tx.updates("tiny", number)
    return {row.device_id: row.quarantine for row in rows if row.quarantine is not None}


def assert_the_mean_is_of(site, spec, devices, number=1):
    """Full sketches of weight 1: the plain mean."""
    before, after = site.master(spec, number - 1), site.master(spec, number)
    for name in before:
        updates = []
        for device in devices:
            with site.store.read() as tx:
                digest = tx.accepted("tiny", number, device).digest
            updates.append(_arrays(site, spec, digest)[name].astype(np.float64))
        mean = np.mean(updates, axis=0)
        np.testing.assert_allclose(after[name], before[name] + mean, rtol=1e-5, atol=1e-7)


def _arrays(site, spec, digest):
    shapes = payload.adapter_shapes(spec.adapter, K)
    return payload.decode(site.blobs.read(digest), shapes)[0]


def test_an_update_above_max_norm_gets_its_receipt_and_is_part_of_no_mean_and_no_quorum(
    site, spec_of, caplog
):
    spec = spec_of(quorum=2, max_norm=0.5)
    send(site, spec, {"a": 0.1, "b": 3.0})
    status = site.coordinator.round_status("tiny", 1)
    assert (status.state, status.assigned, status.accepted) == ("open", 2, 1)
    assert "max_norm=0.5" in quarantined(site)["b"]
    assert [x.message for x in caplog.records if "device b is quarantined" in x.message]
    send(site, spec, {"c": 0.1})
    site.advance()
    assert site.coordinator.round_status("tiny", 1).accepted == 2
    assert_the_mean_is_of(site, spec, "ac")


def test_the_norm_of_every_update_is_kept(site, spec_of):
    spec = spec_of()
    send(site, spec, {"a": 0.1, "b": 3.0})
    with site.store.read() as tx:
        norms = [tx.accepted("tiny", 1, device).norm for device in "ab"]
    np.testing.assert_allclose(norms, [0.1, 3.0], rtol=0.2)


def test_a_quarantined_update_gives_its_seat_to_another_device_at_once(site, spec_of):
    spec = spec_of(cohort_size=2, quorum=2, max_norm=0.5)
    send(site, spec, {"a": 3.0, "b": 0.1})
    assert site.coordinator.check_in("a", "tiny", ready()).state == "wait"
    send(site, spec, {"c": 0.1})
    assert site.coordinator.round_status("tiny", 1).state == "closing"


def test_a_round_of_nothing_but_too_large_updates_is_prolonged_until_others_come(site, spec_of):
    spec = spec_of(cohort_size=2, quorum=2, max_norm=0.5)
    send(site, spec, {"a": 3.0, "b": 3.0, "c": 3.0})
    site.clock.now += 100
    site.advance()
    assert site.coordinator.round_status("tiny", 1).state == "open"
    send(site, spec, {"d": 0.1, "e": 0.1})
    site.advance()
    assert_the_mean_is_of(site, spec, "de")


def at_quorum(site, spec):
    send(site, spec, {"a": 0.1, "b": 0.1, "c": 9.0, "d": 0.1})


def by_the_closer(site, spec):
    send(site, spec, {"a": 0.1, "b": 0.1, "c": 9.0})
    site.clock.now += 100
    site.coordinator._closing.freeze_if_due("tiny", 1)


def by_a_check_in(site, spec):
    send(site, spec, {"a": 0.1, "b": 0.1, "c": 9.0})
    site.clock.now += 100
    assert site.coordinator.check_in("g", "tiny", ready()).state == "wait"


@pytest.mark.parametrize("freeze", [at_quorum, by_the_closer, by_a_check_in])
def test_whoever_freezes_a_round_quarantines_its_outliers_in_the_same_transaction(
    site, spec_of, freeze
):
    spec = spec_of(cohort_size=4, quorum=4, max_norm_ratio=3.0)
    freeze(site, spec)
    assert site.coordinator.round_status("tiny", 1).state == "closing"
    assert quarantined(site).keys() == {"c"}
    assert "3 times the median" in quarantined(site)["c"]
    site.advance()
    counted = [device for device in "abd" if freeze is at_quorum or device != "d"]
    assert site.coordinator.round_status("tiny", 1).accepted == len(counted)
    assert_the_mean_is_of(site, spec, counted)


def test_what_was_quarantined_before_does_not_shift_the_median_and_keeps_its_reason(site, spec_of):
    """With d and e the median would be 0.5, and c no outlier."""
    spec = spec_of(cohort_size=3, quorum=3, max_norm=1.0, max_norm_ratio=3.0)
    send(site, spec, {"d": 9.0, "e": 9.0, "a": 0.1, "b": 0.1, "c": 0.5})
    assert site.coordinator.round_status("tiny", 1).state == "closing"
    reasons = quarantined(site)
    assert ["max_norm=1" in reasons[device] for device in "cde"] == [False, True, True]
    assert reasons.keys() == {"c", "d", "e"}


def test_while_a_round_is_open_nobody_is_an_outlier_yet(site, spec_of):
    spec = spec_of(cohort_size=4, quorum=4, max_norm_ratio=3.0)
    send(site, spec, {"a": 0.1, "b": 0.1, "c": 9.0})
    site.clock.now += 10
    site.advance()
    assert quarantined(site) == {}
    assert site.coordinator.round_status("tiny", 1).accepted == 3


def test_outliers_are_judged_once_however_often_the_frozen_round_is_looked_at(site, spec_of):
    """Without d the median is 0.1, and c would be an outlier too."""
    spec = spec_of(cohort_size=4, quorum=4, max_norm_ratio=2.0)
    send(site, spec, {"a": 0.1, "b": 0.1, "c": 0.3, "d": 2.0})
    assert quarantined(site).keys() == {"d"}
    for _ in range(2):
        site = site.restarted()
        site.coordinator._closing.freeze_if_due("tiny", 1)
        site.coordinator.check_in("g", "tiny", ready())
        with site.store.write() as tx:
            task = tx.task("tiny")
            store_round(tx, task, due_round(tx, task, site.clock.now))
    assert quarantined(site).keys() == {"d"}
    site.advance()
    assert_the_mean_is_of(site, spec, "abc")
    site.store.close()


def test_a_round_closes_with_what_is_left_although_fewer_than_it_needs(site, spec_of):
    spec = spec_of(cohort_size=4, quorum=4, min_updates=4, max_norm_ratio=3.0)
    at_quorum(site, spec)
    site.advance()
    status = site.coordinator.round_status("tiny", 1)
    assert (status.state, status.accepted) == ("closed", 3)
    assert_the_mean_is_of(site, spec, "abd")


@pytest.mark.parametrize("server_optimizer", ["average", "momentum"])
def test_a_round_of_which_nothing_is_left_publishes_the_adapter_unchanged(
    site, spec_of, server_optimizer
):
    """What the optimizer remembers is unchanged too, and the next round goes on from both."""
    spec = spec_of(max_norm_ratio=0.9, rounds=3, server_optimizer=server_optimizer)
    send(site, spec, {"a": 0.1, "b": 0.1001, "c": 0.01})
    site.advance()
    assert len(quarantined(site)) == 2
    send(site, spec, dict.fromkeys("abc", 0.1))
    assert len(quarantined(site, 2)) == 3
    site.advance()
    with site.store.read() as tx:
        _, one, two = tx.adapters("tiny")
    assert (two.version, two.round_number) == (2, 2)
    assert (two.digest, two.master_digest) == (one.digest, one.master_digest)
    assert two.optimizer_digest == one.optimizer_digest
    assert (one.optimizer_digest is None) == (server_optimizer == "average")
    status = site.coordinator.round_status("tiny", 2)
    assert (status.state, status.accepted, status.adapter_version) == ("closed", 0, 2)
    send(site, spec, {"a": 0.1, "b": 0.1001, "c": 0.01})
    site.advance()
    assert site.coordinator.round_status("tiny", 3).adapter_version == 3
