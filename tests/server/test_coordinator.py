from dataclasses import replace

import pytest

from edge_sdk.errors import (
    ConfigError,
    NotAssigned,
    NotFound,
    ProtocolMismatch,
    RoundClosed,
    WrongBaseModel,
)
from edge_sdk.sketch import derive_seed
from edge_sdk.wire import payload
from tests.server.tasks import SEED, ready, tiny_spec


@pytest.fixture
def spec(site):
    for name in "abcd":
        site.add_device(name)
    return site.add_task(tiny_spec(cohort_size=2, quorum=2, deadline_s=100.0))


def check_in(site, device, affordable_k=8):
    return site.coordinator.check_in(device, "tiny", ready(affordable_k))


def test_the_first_check_in_opens_round_one_and_gets_work(site, spec):
    reply = check_in(site, "a", affordable_k=5)
    assert (reply.state, reply.round_number) == ("assigned", 1)
    work = reply.assignment
    assert (work.task, work.round_number, work.adapter_version, work.k) == ("tiny", 1, 0, 4)
    assert work.seed == derive_seed(SEED, 1, "a")
    assert work.training == spec.training
    assert work.deadline_s == 100.0


def test_devices_of_one_round_get_different_seeds_and_their_own_k(site, spec):
    one, other = check_in(site, "a", 1).assignment, check_in(site, "b", 100).assignment
    assert (one.k, other.k) == (1, 8)
    assert one.seed != other.seed


def test_asking_again_gets_the_same_work_with_less_time_left(site, spec):
    before = check_in(site, "a", affordable_k=2).assignment
    site.clock.now += 30
    after = check_in(site.restarted(), "a", affordable_k=8).assignment
    assert after == replace(before, deadline_s=70.0)


def test_a_full_cohort_and_a_device_that_is_done_wait(site, spec):
    site.train("a", spec, seed=1)
    check_in(site, "b")
    for device in ("a", "c"):
        reply = check_in(site, device)
        assert (reply.state, reply.round_number, reply.retry_after_s) == ("wait", 1, 2.0)
        assert reply.assignment is None


def test_a_device_that_has_to_wait_does_not_wait_for_the_writers_lock(site, spec):
    for device in ("a", "b"):
        check_in(site, device)
    with site.store.write():
        assert check_in(site, "c").state == "wait"


def test_the_sketch_of_a_device_is_drawn_anew_in_every_round(site, spec):
    seeds = set()
    for number in (1, 2, 3):
        seeds |= {site.train(device, spec, seed=number).seed for device in "ab"}
        site.advance()
    assert len(seeds) == 6


def test_a_frozen_round_gives_no_work_and_the_next_one_starts_from_its_adapter(site, spec):
    site.train("a", spec, seed=1)
    site.train("b", spec, seed=2)
    reply = check_in(site, "c")
    assert (reply.state, reply.retry_after_s) == ("wait", 0.25)
    site.advance()
    work = check_in(site, "c").assignment
    assert (work.round_number, work.adapter_version) == (2, 1)


def test_the_task_finishes_after_its_last_round(site, spec):
    for number in range(1, spec.policy.rounds + 1):
        for device in "ab":
            assert site.train(device, spec, seed=number).round_number == number
        site.advance()
    reply = check_in(site, "c")
    assert (reply.state, reply.round_number) == ("finished", 3)
    assert [info.version for info in site.coordinator.adapters("tiny")] == [0, 1, 2, 3]


def test_a_round_whose_devices_all_dropped_goes_on_with_others(site, spec):
    check_in(site, "a")
    check_in(site, "b")
    assert check_in(site, "c").state == "wait"
    site.clock.now += 100
    work = check_in(site, "c").assignment
    assert (work.round_number, work.deadline_s) == (1, 100.0)


def test_a_device_that_comes_back_in_a_prolonged_round_still_has_its_work(site, spec):
    before = check_in(site, "a").assignment
    site.clock.now += 250
    assert check_in(site, "a").assignment == before
    site.train("a", spec, seed=1)
    assert site.coordinator.round_status("tiny", 1).accepted == 1


def test_a_check_in_past_the_deadline_of_a_good_round_gets_no_work_in_it(site, spec):
    site.train("a", spec, seed=1)
    site.clock.now += 100
    assert check_in(site, "b").state == "wait"
    assert site.coordinator.round_status("tiny", 1).state == "closing"


def test_a_device_that_cannot_take_part_is_refused_and_opens_no_round(site, spec):
    bad = {
        WrongBaseModel: replace(ready(), base_digest="cd" * 32),
        ProtocolMismatch: replace(ready(), protocol=2),
    }
    for error, message in bad.items():
        with pytest.raises(error):
            site.coordinator.check_in("a", "tiny", message)
    coarse = site.add_task(tiny_spec("coarse", sketch_sizes=[4, 8]))
    with pytest.raises(ConfigError, match="k=4"):
        site.coordinator.check_in("a", coarse.name, ready(3))
    with pytest.raises(NotFound, match="no round 1"):
        site.coordinator.round_status("tiny", 1)


def test_tasks_do_not_mix(site, spec):
    site.add_task(tiny_spec("other", cohort_size=2, quorum=2))
    site.train("a", spec, seed=1)
    assert site.coordinator.check_in("a", "other", ready()).state == "assigned"
    assert site.coordinator.round_status("other", 1).accepted == 0


def test_the_slice_has_the_shapes_of_the_assignment_and_is_counted(site, spec):
    work = check_in(site, "a", affordable_k=2).assignment
    body = site.coordinator.slice_for("a", "tiny", 1)
    arrays, _ = payload.decode(body, payload.adapter_shapes(spec.adapter, work.k))
    assert arrays
    assert site.coordinator.slice_for("a", "tiny", 1) == body
    with site.store.read() as tx:
        assert tx.assignment("tiny", 1, "a").download_bytes == 2 * len(body)


def test_a_slice_of_a_frozen_round_is_refused(site, spec):
    check_in(site, "a")
    site.train("b", spec, seed=1)
    site.clock.now += 100
    site.coordinator.advance("tiny", 1)
    with pytest.raises(RoundClosed, match="round 1"):
        site.coordinator.slice_for("a", "tiny", 1)


def test_round_status_counts_and_runs_down(site, spec):
    check_in(site, "a")
    site.train("b", spec, seed=1)
    site.clock.now += 40
    status = site.coordinator.round_status("tiny", 1)
    assert (status.state, status.assigned, status.accepted) == ("open", 2, 1)
    assert (status.deadline_s, status.adapter_version) == (60.0, None)
    site.clock.now += 60
    site.advance()
    status = site.coordinator.round_status("tiny", 1)
    assert (status.state, status.deadline_s, status.adapter_version) == ("closed", 0.0, 1)


def test_what_does_not_exist_is_not_found(site, spec):
    rules = site.coordinator
    check_in(site, "a")
    for ask in (
        lambda: rules.task("none"),
        lambda: rules.check_in("a", "none", ready()),
        lambda: rules.round_status("none", 1),
        lambda: rules.round_status("tiny", 2),
        lambda: rules.slice_for("a", "tiny", 2),
        lambda: rules.expect_update("a", "tiny", 2),
        lambda: rules.expect_update("a", "none", 1),
        lambda: rules.adapters("none"),
        lambda: rules.adapter_body("tiny", 1),
    ):
        with pytest.raises(NotFound):
            ask()


def test_a_device_without_work_gets_no_slice_and_may_send_nothing(site, spec):
    check_in(site, "a")
    for ask in (site.coordinator.slice_for, site.coordinator.expect_update):
        with pytest.raises(NotAssigned, match="check in"):
            ask("b", "tiny", 1)


def test_the_adapter_file_is_the_one_the_list_names(site, spec):
    (info,) = site.coordinator.adapters("tiny")
    found, stream = site.coordinator.adapter_body("tiny", 0)
    assert found == info
    body = b"".join(stream(0, info.size_bytes))
    assert (len(body), payload.digest(body)) == (info.size_bytes, info.digest)
