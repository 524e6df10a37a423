"""Which ranks the means were made of, against the records of the devices and the adapters."""

from __future__ import annotations

import numpy as np
import pytest

from server.rounds.adapters import indices_of
from server.rounds.coverage import rank_ages, trained_ranks
from tests.server.tasks import SEED, ready, tiny_spec, update_body


@pytest.fixture(params=["independent", "balanced"])
def spec(request, site):
    for name in "abc":
        site.add_device(name)
    return site.add_task(
        tiny_spec(rounds=9, sketching=request.param, max_norm=0.5, stragglers="fold", quorum=2)
    )


def close_round(site, spec, sizes, scale=0.1):
    for device, k in sizes.items():
        site.train(device, spec, seed=ord(device), affordable_k=k, scale=scale)
    site.clock.now += spec.policy.deadline_s
    site.advance()


def by_hand(site, spec, number):
    """For each layer, how many counted updates of a round trained each rank: ``(layers, r)``."""
    counts = np.zeros((len(spec.adapter.layers), spec.adapter.r))
    with site.store.read() as tx:
        for row in tx.updates("tiny", number):
            if row.quarantine is None:
                work = tx.assignment("tiny", row.round_number, row.device_id)
                for layer, ranks in enumerate(indices_of(SEED, spec, work)):
                    for rank in ranks:
                        counts[layer, rank] += 1
    return counts


def found(site, numbers):
    with site.store.read() as tx:
        task = tx.task("tiny")
        return trained_ranks(tx, task, numbers), rank_ages(tx, task)


def test_trained_ranks_are_the_mean_over_layers_in_the_order_of_the_numbers(site, spec):
    close_round(site, spec, {"a": 4, "b": 2})
    close_round(site, spec, {"a": 1, "c": 8})
    counts, _ = found(site, [2, 1, 2])
    expected = [by_hand(site, spec, number).mean(axis=0) for number in (2, 1, 2)]
    np.testing.assert_allclose(counts, expected)
    np.testing.assert_allclose(counts.sum(axis=1), [9, 6, 9])


def test_no_rounds_have_no_rows(site, spec):
    counts, ages = found(site, [])
    assert counts.shape == (0, 8)
    assert ages.tolist() == [0] * 8


def test_a_quarantined_update_trains_nothing_and_a_late_one_counts_where_it_counts(site, spec):
    site.coordinator.check_in("c", "tiny", ready(2))
    close_round(site, spec, {"a": 4, "b": 4})
    site.train("a", spec, seed=1, affordable_k=8, scale=9.0)
    site.submit("c", "tiny", 1, update_body(spec, 2, seed=2))
    close_round(site, spec, {"b": 1})
    counts, _ = found(site, [1, 2])
    np.testing.assert_allclose(counts.sum(axis=1), [8, 3])
    np.testing.assert_allclose(counts[1], by_hand(site, spec, 2).mean(axis=0))


def test_the_age_of_a_rank_is_that_of_the_layer_where_it_is_coldest(site, spec):
    """Also against the adapters: a rank of some age has not moved for as many versions."""
    for number in range(1, 6):
        close_round(site, spec, {"a": 1, "b": 2})
        _, ages = found(site, [])
        expected = np.zeros(8, int)
        for layer in range(2):
            for rank in range(8):
                trained = [n for n in range(1, number + 1) if by_hand(site, spec, n)[layer, rank]]
                expected[rank] = max(expected[rank], number - max(trained, default=0))
        assert ages.tolist() == expected.tolist()
        versions = [site.master(spec, v) for v in range(number + 1)]
        for rank, age in enumerate(ages):
            still = [
                number
                - max((v for v in range(1, number + 1) if _moved(versions, n, v, rank)), default=0)
                for n in _factors(spec)
            ]
            assert max(still) == age


def _factors(spec):
    return [f"{layer.name}.lora_A" for layer in spec.adapter.layers]


def _moved(versions, name, version, rank):
    return (versions[version][name][rank] != versions[version - 1][name][rank]).any()


def test_the_round_that_is_open_does_not_make_ranks_older(site, spec):
    close_round(site, spec, {"a": 8, "b": 8})
    assert found(site, [])[1].tolist() == [0] * 8
    site.train("a", spec, seed=1, affordable_k=1)
    assert found(site, [])[1].tolist() == [0] * 8


def test_a_rank_that_was_never_trained_is_as_old_as_the_task(site):
    site.add_device("a")
    spec = site.add_task(tiny_spec(rounds=9, cohort_size=1, quorum=1, sketch_sizes=[1]))
    for number in range(1, 4):
        close_round(site, spec, {"a": 1})
        _, ages = found(site, [])
        assert ages.max() == number


@pytest.mark.parametrize("sizes", [{"a": 1}, {"a": 2, "b": 1}, {"a": 4, "b": 2, "c": 1}])
def test_with_balanced_draws_no_rank_gets_older_than_the_stated_bound(site, sizes):
    """Every update counts: a round makes ``sum(k)`` draws, and 2 r - 1 draws have all ranks."""
    for device in sizes:
        site.add_device(device)
    draws, cohort = sum(sizes.values()), len(sizes)
    spec = site.add_task(
        tiny_spec(rounds=30, cohort_size=cohort, quorum=cohort, sketching="balanced", dense=False)
    )
    bound = -(-(2 * spec.adapter.r - 1) // draws) - 1
    for number in range(1, 31):
        close_round(site, spec, sizes)
        if number % 3 == 0:
            assert found(site, [])[1].max() <= bound
