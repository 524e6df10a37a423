"""The stream of balanced draws: exact chances by enumeration, bounds on every stretch of it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations, product
from math import comb, perm

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import SketchError
from edge_sdk.sketch import draw_sketch
from server.rules.balanced import (
    _Stream,
    balanced_sketch,
    balanced_spread,
    draw_slots,
    next_lap,
)
from tests.server.tasks import in_parallel

GOLDEN_SLOTS = [7, 0, 3, 1, 4, 7, 2, 0, 5, 6, 3, 7]
GOLDEN_SKETCH = [[1, 2, 5, 8], [4, 5, 6, 12], [5, 9, 11, 13]]

streams = st.integers(2, 12).flatmap(
    lambda r: st.tuples(st.integers(0, 2**53 - 1), st.just(r), st.integers(1, r - 1))
)


def every_next_lap(before: tuple[int, ...], ahead: int):
    """All laps that can follow one, as often as there are ways to come to them."""
    r = len(before)
    ways = [range(min(ahead + 1, r - place)) for place in range(r)]
    for chosen in product(*ways):
        yield next_lap(list(before), ahead, list(chosen))


@pytest.mark.parametrize(("r", "spread"), [(3, 1), (3, 2), (4, 1), (4, 2), (4, 3), (5, 3)])
def test_all_ordered_draws_of_a_window_are_equally_likely_also_across_laps(r, spread):
    """By enumeration of every first lap and every second one: no sampling, no tolerance."""
    seen: dict[int, Counter[tuple[int, ...]]] = {start: Counter() for start in range(r + 1)}
    for first in permutations(range(r)):
        for second in every_next_lap(first, r - spread):
            stream = (*first, *second)
            for start, windows in seen.items():
                windows[stream[start : start + spread]] += 1
    for windows in seen.values():
        assert len(windows) == perm(r, spread)
        assert len(set(windows.values())) == 1


@pytest.mark.parametrize(("r", "spread"), [(3, 2), (4, 3)])
def test_chances_stay_equal_from_lap_to_lap(r, spread):
    """Across the second and the third lap, with every one before them."""
    windows: Counter[tuple[int, ...]] = Counter()
    for first in permutations(range(r)):
        for second in every_next_lap(first, r - spread):
            for third in every_next_lap(tuple(second), r - spread):
                windows[tuple((second + third)[r - 1 : r - 1 + spread])] += 1
    assert len(windows) == perm(r, spread)
    assert len(set(windows.values())) == 1


@pytest.mark.parametrize("place", [0, 3, 4, 6, 14, 5 * 64 - 1])
def test_over_seeds_every_set_is_equally_likely_in_the_stream_and_in_every_layer(place):
    """Inside a lap, across two, across two blocks of laps; k below the largest size too."""
    r, k, seeds = 5, 2, 1000
    drawn = [
        [draw_slots(seed, r, 3, place, k), *balanced_sketch(seed, r, 3, 2, place, k)]
        for seed in range(seeds)
    ]
    for which in range(3):
        counts = Counter(tuple(sorted(sets[which].tolist())) for sets in drawn)
        expected = seeds / comb(r, k)
        assert (
            sum((x - expected) ** 2 / expected for x in counts.values()) < 35
        )  # 9 degrees, p 5e-5
        assert len(counts) == comb(r, k)
        for rank in range(r):
            share = sum(n for chosen, n in counts.items() if rank in chosen) / seeds
            assert abs(share - k / r) < 5 * np.sqrt(k / r * (1 - k / r) / seeds)


@pytest.mark.parametrize(("r", "spread"), [(4, 1), (4, 2), (5, 2), (5, 4)])
def test_every_lap_that_keeps_the_rule_can_follow_and_no_other(r, spread):
    before, ahead = tuple(range(r)), r - spread
    allowed = {
        after
        for after in permutations(before)
        if all(place >= slot - ahead for place, slot in enumerate(after))
    }
    assert {tuple(after) for after in every_next_lap(before, ahead)} == allowed


@given(streams)
@settings(deadline=None, max_examples=60)
def test_every_lap_has_every_slot_once(stream):
    seed, r, spread = stream
    slots = draw_slots(seed, r, spread, 0, 70 * r)
    assert (np.sort(slots.reshape(70, r), axis=1) == np.arange(r)).all()


@given(streams)
@settings(deadline=None, max_examples=60)
def test_a_slot_comes_again_after_spread_draws_at_least_and_two_laps_at_most(stream):
    seed, r, spread = stream
    slots = draw_slots(seed, r, spread, 0, 70 * r)
    for slot in range(r):
        gaps = np.diff(np.flatnonzero(slots == slot))
        assert gaps.min() >= spread
        assert gaps.max() <= 2 * r - 1


@given(streams, st.data())
@settings(deadline=None, max_examples=60)
def test_one_window_after_the_other_repeats_no_rank_and_leaves_none_out(stream, data):
    seed, r, spread = stream
    place, recent = data.draw(st.integers(0, 200 * r)), []
    while len(recent) < 2 * r - 1:
        k = data.draw(st.integers(1, spread))
        layers = balanced_sketch(seed, r, spread, 3, place + len(recent), k)
        for ranks in layers:
            assert len(np.unique(ranks)) == k
            assert (np.diff(ranks) > 0).all()
            assert 0 <= ranks[0] <= ranks[-1] < r
        recent += layers[0].tolist()
    assert set(recent) == set(range(r))


@given(streams, st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_a_smaller_sketch_from_the_same_place_is_a_part_of_the_larger_one(stream, place):
    seed, r, spread = stream
    sketches = [balanced_sketch(seed, r, spread, 2, place, k) for k in range(1, spread + 1)]
    sketches.append(balanced_sketch(seed, r, spread, 2, place, r))
    for smaller, larger in pairwise(sketches):
        for mine, theirs in zip(smaller, larger, strict=True):
            assert set(mine) < set(theirs)


def test_a_sketch_of_all_ranks_is_all_ranks():
    for ranks in balanced_sketch(1, 8, 4, 3, 5, 8):
        assert ranks.tolist() == list(range(8))


def test_layers_pair_their_ranks_differently():
    one, other = balanced_sketch(1, 64, 32, 2, 0, 8)
    assert one.tolist() != other.tolist()


def test_the_spread_is_the_largest_size_below_all_ranks():
    assert balanced_spread(8, [1, 2, 4, 8]) == 4
    assert balanced_spread(8, [8, 3, 1]) == 3
    assert balanced_spread(8, [8]) == balanced_spread(1, [1]) == 1


def test_draws_are_the_same_on_every_machine_and_after_every_upgrade():
    assert draw_slots(7, 8, 4, 5, 12).tolist() == GOLDEN_SLOTS
    assert [x.tolist() for x in balanced_sketch(7, 16, 8, 3, 5000, 4)] == GOLDEN_SKETCH


def test_a_far_lap_is_the_same_from_near_and_from_afar():
    near, afar = _Stream(3, 6, 2), _Stream(3, 6, 2)
    laps = [near.lap(number).tolist() for number in range(200)]
    for number in (199, 0, 128, 64, 63, 127):
        assert afar.lap(number).tolist() == laps[number]


def test_threads_that_reach_far_at_once_see_one_stream():
    expected = draw_slots(11, 7, 3, 0, 7 * 300).tolist()
    shared = _Stream(11, 7, 3)
    found = in_parallel([lambda n=n: shared.lap(n).tolist() for n in range(299, 250, -7)])
    assert found == [expected[7 * n : 7 * n + 7] for n in range(299, 250, -7)]


@pytest.mark.parametrize(("place", "k"), [(-1, 2), (0, 5), (0, 7), (0, 0), (0, 9)])
def test_places_and_sizes_that_no_sketch_of_the_task_has_are_refused(place, k):
    with pytest.raises(SketchError):
        balanced_sketch(1, 8, 4, 2, place, k)


@pytest.mark.parametrize("ks", [[4] * 4, [1, 1, 2, 1, 4, 1, 8, 2], [3, 5, 1, 7]])
def test_the_mean_of_a_cohort_varies_less_than_with_independent_draws(ks):
    """Devices with equal updates: all that varies is how many of them draw each rank."""
    r, seeds = 16, 400
    spread = balanced_spread(r, ks)
    starts = np.concatenate([[0], np.cumsum(ks)[:-1]]).tolist()
    expected = sum(ks) / r

    def variance(draws) -> float:
        counts = np.zeros((seeds, r))
        for seed in range(seeds):
            for indices in draws(seed):
                counts[seed, indices] += 1
        assert counts.mean(axis=0) == pytest.approx(expected, abs=0.35), "unbiased"
        return float(((counts - expected) ** 2).mean())

    independent = variance(
        lambda seed: [draw_sketch(1000 * seed + i, r, k, 1)[0] for i, k in enumerate(ks)]
    )
    balanced = variance(
        lambda seed: [
            balanced_sketch(seed, r, spread, 1, start, k)[0]
            for start, k in zip(starts, ks, strict=True)
        ]
    )
    by_hand = sum(k / r * (1 - k / r) for k in ks)
    assert independent == pytest.approx(by_hand, rel=0.05)
    assert balanced < 0.8 * independent
