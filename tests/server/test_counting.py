"""Updates that come late: folded into the open round, made to wait, or refused."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from edge_sdk.errors import RoundClosed, ServerBusy, UpdateConflict
from edge_sdk.wire import payload
from tests.server.tasks import in_parallel, ready, tiny_spec, update_body

K = 4


def folding(**policy):
    rules = {"rounds": 5, "cohort_size": 3, "quorum": 2, "deadline_s": 100.0}
    return tiny_spec(**{**rules, "stragglers": "fold", "max_staleness": 2, **policy})


@pytest.fixture
def spec(site):
    """Round 1 has its quorum, of a and b; c still trains its work of it."""
    for name in "abcd":
        site.add_device(name)
    spec = site.add_task(folding())
    site.coordinator.check_in("c", "tiny", ready(K))
    close_round(site, spec)
    return spec


def close_round(site, spec, is_published=True):
    """Complete the quorum of the round that is open or opens now."""
    for seed, device in enumerate("ab"):
        site.train(device, spec, seed)
    if is_published:
        site.advance()


def late_body(spec):
    return update_body(spec, K, seed=9)


def row_of(site, device="c", number=1):
    with site.store.read() as tx:
        return tx.accepted("tiny", number, device)


def accepted(site, number):
    return site.coordinator.round_status("tiny", number).accepted


def asks_about_the_late_update(site, spec):
    return (
        lambda: site.submit("c", "tiny", 1, late_body(spec)),
        lambda: site.coordinator.expect_update("c", "tiny", 1),
    )


def test_a_late_update_counts_in_the_open_round_and_not_in_its_own(site, spec):
    site.coordinator.check_in("a", "tiny", ready())
    assert site.coordinator.expect_update("c", "tiny", 1) >= len(late_body(spec))
    receipt = site.submit("c", "tiny", 1, late_body(spec))
    assert (receipt.round_number, receipt.digest) == (1, payload.digest(late_body(spec)))
    row = row_of(site)
    assert (row.round_number, row.counted_in, row.staleness) == (1, 2, 1)
    assert (accepted(site, 1), accepted(site, 2)) == (2, 1)


def test_a_late_update_opens_the_next_round_if_nobody_did(site, spec):
    site.submit("c", "tiny", 1, late_body(spec))
    status = site.coordinator.round_status("tiny", 2)
    assert (status.state, status.assigned, status.accepted) == ("open", 0, 1)
    assert status.deadline_s == spec.policy.deadline_s


def test_a_late_update_can_complete_the_quorum(site, spec):
    site.train("a", spec, seed=5)
    site.submit("c", "tiny", 1, late_body(spec))
    site.advance()
    status = site.coordinator.round_status("tiny", 2)
    assert (status.state, status.accepted, status.adapter_version) == ("closed", 2, 2)


def test_a_late_update_that_is_the_whole_quorum_opens_and_freezes_a_round(site):
    spec = site.add_task(folding(cohort_size=2, quorum=1))
    for device in "ac":
        site.coordinator.check_in(site.add_device(device), "tiny", ready(K))
    site.train("a", spec, seed=1)
    site.advance()
    site.submit("c", "tiny", 1, late_body(spec))
    assert site.coordinator.round_status("tiny", 2).state == "closing"
    site.advance()
    assert site.coordinator.round_status("tiny", 2).adapter_version == 2


@pytest.mark.parametrize("is_looked_at", [True, False])
def test_while_a_round_closes_a_late_update_waits_and_is_not_lost(site, is_looked_at):
    spec = site.add_task(folding(quorum=3))
    for device in "abc":
        site.coordinator.check_in(site.add_device(device), "tiny", ready(K))
    close_round(site, spec, is_published=False)
    site.clock.now += 100
    if is_looked_at:
        site.coordinator._closing.freeze_if_due("tiny", 1)
    for ask in asks_about_the_late_update(site, spec):
        with pytest.raises(ServerBusy, match="counts in the next one") as caught:
            ask()
        assert 0 < caught.value.retry_after_s <= 2
    assert row_of(site) is None
    site.advance()
    site.submit("c", "tiny", 1, late_body(spec))
    assert (row_of(site).counted_in, row_of(site).staleness) == (2, 1)
    assert accepted(site, 1) == 2


def test_the_same_bytes_get_the_same_receipt_and_count_once_whatever_happened_since(site, spec):
    first = site.submit("c", "tiny", 1, late_body(spec))
    counted = row_of(site)
    for is_published in (False, True, False, True, False, True, False, True):
        assert site.submit("c", "tiny", 1, late_body(spec)) == first
        assert site.coordinator.expect_update("c", "tiny", 1) >= len(late_body(spec))
        with pytest.raises(UpdateConflict, match="round 1"):
            site.submit("c", "tiny", 1, update_body(spec, K, seed=10))
        if is_published:
            site.advance()
        else:
            site.train("a", spec, seed=1)
            if site.coordinator.round_status("tiny", counted.counted_in).state != "closing":
                site.train("b", spec, seed=2)
    assert site.coordinator.check_in("d", "tiny", ready()).state == "finished"
    assert site.submit("c", "tiny", 1, late_body(spec)) == first
    assert row_of(site.restarted()) == counted


def test_an_update_that_is_too_far_behind_is_refused_and_says_by_how_much(site, spec):
    close_round(site, spec)
    site.coordinator.expect_update("c", "tiny", 1)
    close_round(site, spec)
    for ask in (
        *asks_about_the_late_update(site, spec),
        lambda: site.coordinator.slice_for("c", "tiny", 1),
    ):
        with pytest.raises(RoundClosed, match=r"3 adapter versions behind.*max_staleness=2"):
            ask()


def test_staleness_is_counted_to_the_round_that_will_take_the_update(site, spec):
    """While round 3 closes, the next is 4: three versions behind, one more than allowed."""
    close_round(site, spec)
    close_round(site, spec, is_published=False)
    for ask in asks_about_the_late_update(site, spec):
        with pytest.raises(RoundClosed, match="3 adapter versions behind"):
            ask()


@pytest.mark.parametrize("is_published", [True, False])
def test_after_the_last_round_nothing_is_taken(site, is_published):
    spec = site.add_task(folding(rounds=1))
    for device in "abc":
        site.coordinator.check_in(site.add_device(device), "tiny", ready(K))
    close_round(site, spec, is_published)
    for ask in (
        *asks_about_the_late_update(site, spec),
        lambda: site.coordinator.slice_for("c", "tiny", 1),
    ):
        with pytest.raises(RoundClosed, match="no round follows"):
            ask()


def test_the_slice_can_be_read_as_long_as_its_update_would_be_taken(site):
    spec = site.add_task(folding())
    for device in "abc":
        site.coordinator.check_in(site.add_device(device), "tiny", ready(K))
    body = site.coordinator.slice_for("c", "tiny", 1)
    close_round(site, spec, is_published=False)
    assert site.coordinator.slice_for("c", "tiny", 1) == body
    site.advance()
    assert site.coordinator.slice_for("c", "tiny", 1) == body
    close_round(site, spec)
    assert site.coordinator.slice_for("c", "tiny", 1) == body


def test_a_slice_of_a_round_that_is_due_is_refused_if_its_update_would_be(site):
    spec = site.add_task(folding(stragglers="refuse"))
    for device in "abc":
        site.coordinator.check_in(site.add_device(device), "tiny", ready(K))
    site.train("a", spec, seed=1)
    site.clock.now += 100
    with pytest.raises(RoundClosed, match="round 1"):
        site.coordinator.slice_for("c", "tiny", 1)


def test_a_device_whose_update_came_late_takes_part_in_the_open_round_too(site, spec):
    site.submit("c", "tiny", 1, late_body(spec))
    work = site.train("c", spec, seed=3)
    assert (work.round_number, work.adapter_version) == (2, 1)
    with site.store.read() as tx:
        rows = tx.updates("tiny", 2)
    assert [(row.device_id, row.round_number, row.staleness) for row in rows] == [
        ("c", 2, 0),
        ("c", 1, 1),
    ]


def test_a_device_that_went_on_to_the_next_round_may_still_send_the_work_before(site, spec):
    work = site.coordinator.check_in("c", "tiny", ready(2)).assignment
    assert (work.round_number, work.k) == (2, 2)
    site.submit("c", "tiny", 1, late_body(spec))
    site.submit("c", "tiny", 2, update_body(spec, 2, seed=4))
    assert accepted(site, 2) == 2


def test_a_dropped_device_gives_its_seat_up_also_if_its_older_update_counts_in_the_round(site):
    """c and a hold the two seats of round 2; what counts there is c's update of round 1."""
    spec = site.add_task(folding(cohort_size=2, min_updates=2))
    for name in "abcd":
        site.add_device(name)
    for device in "ca":
        site.coordinator.check_in(device, "tiny", ready(K))
    site.clock.now += 100
    close_round(site, spec)
    for device in "ca":
        assert site.coordinator.check_in(device, "tiny", ready(K)).state == "assigned"
    site.submit("c", "tiny", 1, late_body(spec))
    assert accepted(site, 2) == 1
    assert site.coordinator.check_in("b", "tiny", ready()).state == "wait"
    site.clock.now += 100
    for device in "bd":
        assert site.coordinator.check_in(device, "tiny", ready()).state == "assigned"


def test_of_a_cohort_larger_than_the_quorum_the_fastest_count_and_the_others_are_refused(site):
    """Over-selection."""
    spec = site.add_task(tiny_spec(cohort_size=4, quorum=2))
    devices = [site.add_device(name) for name in "abcd"]
    for device in devices:
        assert site.coordinator.check_in(device, "tiny", ready(K)).state == "assigned"
    for device in "db":
        site.submit(device, "tiny", 1, update_body(spec, K, seed=1))
    for device in "ac":
        with pytest.raises(RoundClosed):
            site.submit(device, "tiny", 1, update_body(spec, K, seed=1))
    site.advance()
    with site.store.read() as tx:
        assert [row.device_id for row in tx.updates("tiny", 1)] == ["b", "d"]


def test_the_same_late_update_from_many_threads_opens_one_round_and_counts_once(site, spec):
    results = in_parallel([lambda: site.submit("c", "tiny", 1, late_body(spec))] * 6)
    assert len(set(results)) == 1
    assert accepted(site, 2) == 1


@pytest.mark.parametrize("seed", range(3))
def test_asynchronous_devices_fill_one_buffer_after_the_other_and_no_receipt_is_in_vain(site, seed):
    """Devices of any speed, never waiting for each other; the server is started anew at times."""
    spec = site.add_task(folding(rounds=8, cohort_size=5, quorum=2, max_staleness=3))
    devices = [site.add_device(f"d{i}") for i in range(5)]
    rng, working, receipts, refused = random.Random(seed), {}, set(), 0
    while True:
        device = rng.choice(devices[: rng.randint(1, 5)])  # the first ones are faster
        if device in working:
            number = working.pop(device)
            try:
                site.submit(device, "tiny", number, update_body(spec, K, seed=number))
                receipts.add((number, device))
            except ServerBusy:
                working[device] = number
            except RoundClosed:
                refused += 1
        else:
            reply = site.coordinator.check_in(device, "tiny", ready(K))
            if reply.state == "finished":
                break
            if reply.assignment is not None:
                working[device] = reply.round_number
        if rng.random() < 0.3:
            site.advance()
        if rng.random() < 0.05:
            site = site.restarted()
    with site.store.read() as tx:
        rounds = [tx.updates("tiny", row.number) for row in tx.rounds("tiny")]
        versions = [row.version for row in tx.adapters("tiny")]
    assert Counter(len(rows) for rows in rounds) == {2: 8}
    assert versions == list(range(9))
    rows = [row for found in rounds for row in found]
    assert {(row.round_number, row.device_id) for row in rows} == receipts
    assert all(0 <= row.staleness <= 3 for row in rows)
    assert any(row.staleness > 0 for row in rows)
    assert all(row.staleness == row.counted_in - row.round_number for row in rows)
    site.store.close()
