"""A device asks again in the same round, and can afford as much as before, more, or less."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.sketch import draw_sketch, largest_sketch
from edge_sdk.wire import payload
from server.operation.reports import round_reports
from server.rounds.adapters import indices_of
from server.rules.balanced import balanced_sketch
from tests.server.tasks import SEED, in_parallel, ready, tiny_spec


@pytest.fixture
def spec(site):
    for name in "abc":
        site.add_device(name)
    return site.add_task(tiny_spec(cohort_size=2, quorum=2, deadline_s=100.0))


def check_in(site, device, affordable_k):
    return site.coordinator.check_in(device, "tiny", ready(affordable_k))


def stored(site, device="a"):
    with site.store.read() as tx:
        return tx.assignment("tiny", 1, device)


def test_a_device_that_can_afford_less_gets_a_smaller_sketch_of_the_same_work(site, spec):
    first = check_in(site, "a", 8).assignment
    before = stored(site)
    site.clock.now += 30
    reply = check_in(site, "a", 3)
    assert (reply.state, reply.round_number) == ("assigned", 1)
    assert reply.assignment == replace(first, k=2, deadline_s=70.0)
    assert stored(site.restarted()) == replace(before, k=2)


def test_stepping_down_again_goes_on_to_the_smallest_size(site, spec):
    assert [check_in(site, "a", k).assignment.k for k in (8, 7, 2, 1)] == [8, 4, 2, 1]


def test_asking_again_without_need_changes_nothing(site, spec):
    first = check_in(site, "a", 4).assignment
    before = stored(site)
    for affordable_k in (4, 5, 8, 2**53):
        assert check_in(site, "a", affordable_k).assignment == first
    assert stored(site) == before


def test_work_never_grows_whatever_a_device_says_in_whatever_order(site):
    """Lost and late check-ins come in any order: the size is the least that was ever asked for."""
    orders = list(itertools.permutations((1, 3, 4, 9)))
    spec = site.add_task(tiny_spec(cohort_size=len(orders), quorum=1))
    ladder = spec.policy.sketch_sizes
    for i, order in enumerate(orders):
        device = site.add_device(f"d{i}")
        for n, affordable_k in enumerate(order, 1):
            work = check_in(site, device, affordable_k).assignment
            assert work.k == largest_sketch(ladder, min(order[:n]))


def test_the_order_of_the_ladder_does_not_matter(site):
    site.add_device("a")
    site.add_task(tiny_spec(cohort_size=1, quorum=1, sketch_sizes=[8, 1, 4]))
    assert [check_in(site, "a", k).assignment.k for k in (8, 5, 3)] == [8, 4, 1]


def test_below_the_ladder_a_device_is_refused_and_keeps_its_work(site):
    site.add_device("a")
    site.add_task(tiny_spec(sketch_sizes=[2, 8]))
    check_in(site, "a", 8)
    before = stored(site)
    with pytest.raises(ConfigError, match="k=2"):
        check_in(site, "a", 1)
    assert stored(site) == before


def test_after_its_update_a_device_waits_and_the_record_stays(site, spec):
    site.train("a", spec, seed=1)
    before = stored(site)
    assert check_in(site, "a", 1).state == "wait"
    assert stored(site) == before


@pytest.mark.parametrize("is_looked_at", [True, False])
def test_in_a_frozen_round_nobody_steps_down(site, spec, is_looked_at):
    check_in(site, "a", 8)
    before = stored(site)
    site.train("b", spec, seed=1)
    site.clock.now += 100
    if is_looked_at:
        site.coordinator._closing.freeze_if_due("tiny", 1)
    assert check_in(site, "a", 1).state == "wait"
    assert stored(site) == before


def test_stepping_down_takes_no_second_place_in_the_cohort_and_gives_none_up(site, spec):
    check_in(site, "a", 8)
    check_in(site, "a", 4)
    assert check_in(site, "b", 8).state == "assigned"
    check_in(site, "a", 2)
    assert check_in(site, "c", 8).state == "wait"


def test_in_a_prolonged_round_stepping_down_wins_no_place_back(site, spec):
    check_in(site, "a", 8)
    site.clock.now += 100
    assert check_in(site, "a", 2).assignment.k == 2
    for device in "bc":
        assert check_in(site, device, 8).state == "assigned"


def test_the_slice_of_the_smaller_sketch_has_the_ranks_its_record_says(site, spec):
    check_in(site, "a", 8)
    whole = site.coordinator.slice_for("a", "tiny", 1)
    check_in(site, "a", 2)
    part = site.coordinator.slice_for("a", "tiny", 1)
    row = stored(site)
    assert row.download_bytes == len(whole) + len(part)
    arrays, _ = payload.decode(part, payload.adapter_shapes(spec.adapter, 2))
    ranks = draw_sketch(row.seed, spec.adapter.r, 2, len(spec.adapter.layers))
    for layer, mine, theirs in zip(
        spec.adapter.layers, ranks, indices_of(SEED, spec, row), strict=True
    ):
        name = f"{layer.name}.lora_A"
        np.testing.assert_array_equal(arrays[name], site.master(spec, 0)[name][mine])
        np.testing.assert_array_equal(mine, theirs)


def test_the_report_shows_the_size_that_counts_and_all_bytes(site, spec):
    check_in(site, "a", 8)
    size = len(site.coordinator.slice_for("a", "tiny", 1))
    check_in(site, "a", 2)
    (round_one,) = round_reports(site.store, "tiny")
    (device,) = round_one.devices
    assert (device.k, device.download_bytes) == (2, size)


def test_stepping_down_is_in_the_log_once(site, spec, caplog):
    caplog.set_level("INFO", logger="server")
    for affordable_k in (8, 8, 2, 2, 8):
        check_in(site, "a", affordable_k)
    lines = [record.getMessage() for record in caplog.records if "stepped" in record.message]
    assert lines == ["round 1 of tiny: device a stepped down from k=8 to k=2"]


def balanced(site, **policy):
    spec = site.add_task(tiny_spec("even", **{"sketching": "balanced", "rounds": 9, **policy}))
    return spec, lambda device, affordable_k: site.coordinator.check_in(
        device, "even", ready(affordable_k)
    )


def work_of(site, device, number=1):
    with site.store.read() as tx:
        return tx.assignment("even", number, device)


def test_balanced_draws_of_a_cohort_follow_each_other_in_the_stream(site):
    _, ask = balanced(site, cohort_size=4, quorum=1)
    for device, affordable_k in zip("abcd", (4, 1, 8, 2), strict=True):
        ask(site.add_device(device), affordable_k)
    rows = [work_of(site, device) for device in "abcd"]
    assert [(row.k, row.drawn_from) for row in rows] == [(4, 0), (1, 4), (8, 5), (2, 13)]


def test_a_balanced_cohort_that_draws_r_ranks_trains_each_one_once_in_every_layer(site):
    """Also in the next rounds, and after the server was started anew."""
    spec, _ = balanced(site, cohort_size=4, quorum=4)
    for device in "abcd":
        site.add_device(device)
    for number in (1, 2, 3):
        for device in "abcd":
            site.train(device, spec, seed=1, affordable_k=2)
        sketches = [indices_of(SEED, spec, work_of(site, x, number)) for x in "abcd"]
        for layer in range(len(spec.adapter.layers)):
            assert sorted(np.concatenate([x[layer] for x in sketches])) == list(range(8))
        site = site.restarted()
        site.advance()
    site.store.close()


def test_stepping_down_keeps_the_place_in_the_draws_and_takes_no_more_of_them(site):
    spec, ask = balanced(site)
    site.add_device("a")
    ask(site.add_device("b"), 4)
    ask("a", 8)
    larger = indices_of(SEED, spec, work_of(site, "a"))
    for affordable_k in (8, 3, 3, 1):
        ask("a", affordable_k)
        assert work_of(site, "a").drawn_from == 4
        smaller = indices_of(SEED, spec, work_of(site, "a"))
        assert all(set(x) <= set(y) for x, y in zip(smaller, larger, strict=True))
        larger = smaller
    ask(site.add_device("c"), 1)
    assert work_of(site, "c").drawn_from == 12


def test_devices_that_come_at_once_draw_apart(site):
    _, ask = balanced(site, cohort_size=8, quorum=1)
    devices = [site.add_device(f"d{i}") for i in range(8)]
    in_parallel([lambda d=device: ask(d, 2) for device in devices])
    assert sorted(work_of(site, device).drawn_from for device in devices) == list(range(0, 16, 2))


def test_a_device_that_gets_no_seat_draws_nothing(site):
    _, ask = balanced(site, cohort_size=1, quorum=1)
    ask(site.add_device("a"), 4)
    assert ask(site.add_device("b"), 4).state == "wait"
    with site.store.write() as tx:
        assert tx.take_draws("even", 0) == 4


def test_an_independent_task_draws_nothing_from_the_stream(site, spec):
    check_in(site, "a", 8)
    assert stored(site).drawn_from is None
    with site.store.write() as tx:
        assert tx.take_draws("tiny", 0) == 0


def test_the_slice_of_balanced_work_has_the_ranks_its_record_says(site):
    spec, ask = balanced(site, cohort_size=2, quorum=2)
    ask(site.add_device("b"), 1)
    ask(site.add_device("a"), 4)
    arrays, _ = payload.decode(
        site.coordinator.slice_for("a", "even", 1), payload.adapter_shapes(spec.adapter, 4)
    )
    sketch = balanced_sketch(SEED, 8, 4, 2, 1, 4)
    for layer, ranks in zip(spec.adapter.layers, sketch, strict=True):
        name = f"{layer.name}.lora_A"
        np.testing.assert_array_equal(arrays[name], site.master(spec, 0)[name][ranks])


def test_an_accepted_update_keeps_its_seat_through_every_stretch(site):
    spec = site.add_task(tiny_spec(cohort_size=2, quorum=2, min_updates=2, deadline_s=100.0))
    for name in "abcd":
        site.add_device(name)
    site.train("a", spec, seed=1)
    check_in(site, "b", 8)
    for device in "cd":
        site.clock.now += 100
        assert check_in(site, device, 8).state == "assigned"
        assert check_in(site, "b", 8).state == "assigned", "its work stays valid"
        assert {check_in(site, x, 8).state for x in "cd" if x > device} <= {"wait"}
