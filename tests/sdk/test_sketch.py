"""The invariants of the method that need no model."""

from __future__ import annotations

from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import SketchError
from edge_sdk.sketch import (
    derive_seed,
    draw_indices,
    draw_sketch,
    largest_sketch,
    lora_scaling,
    scatter_add,
    sketched_scaling,
    take,
)

GOLDEN_SEED = 6697810448961828
GOLDEN_SKETCH = [[2, 3, 4, 5], [1, 4, 6, 11], [1, 5, 9, 14]]
GOLDEN_SKETCH_OF_ZERO = [[1, 2, 3], [3, 5, 7]]

sizes = st.integers(2, 7).flatmap(lambda r: st.tuples(st.just(r), st.integers(1, r)))


def every_sketch(r: int, k: int) -> list[np.ndarray]:
    return [np.array(chosen) for chosen in combinations(range(r), k)]


def sketch_matrix(r: int, indices: np.ndarray) -> np.ndarray:
    """S, with the scale the product applies when alpha / r is 1."""
    S = np.zeros((r, r))
    S[indices, indices] = sketched_scaling(lora_alpha=r, r=r, k=len(indices))
    return S


@given(sizes)
def test_mean_of_every_sketch_is_the_identity(rk):
    r, k = rk
    mean = np.mean([sketch_matrix(r, chosen) for chosen in every_sketch(r, k)], axis=0)
    np.testing.assert_allclose(mean, np.eye(r), atol=1e-12)


@given(sizes)
def test_mean_square_of_every_sketch_is_r_over_k(rk):
    r, k = rk
    squares = [sketch_matrix(r, chosen) @ sketch_matrix(r, chosen) for chosen in every_sketch(r, k)]
    np.testing.assert_allclose(np.mean(squares, axis=0), (r / k) * np.eye(r), atol=1e-12)


@given(sizes)
def test_mean_of_every_sketched_product_is_the_product_with_the_stated_variance(rk):
    r, k = rk
    rng = np.random.default_rng(r * 10 + k)
    B, A = rng.normal(size=(3, r)), rng.normal(size=(r, 5))
    products = []
    for chosen in every_sketch(r, k):
        B_k, A_k = take(B, A, chosen)
        products.append(sketched_scaling(lora_alpha=r, r=r, k=k) * B_k @ A_k)
    np.testing.assert_allclose(np.mean(products, axis=0), B @ A, atol=1e-12)
    variance = np.mean([np.sum((product - B @ A) ** 2) for product in products])
    ranks = np.sum(np.sum(B**2, axis=0) * np.sum(A**2, axis=1))
    stated = r * (r - k) / (k * (r - 1)) * (ranks - np.sum((B @ A) ** 2) / r)
    np.testing.assert_allclose(variance, stated, atol=1e-10)


def test_mean_gradient_over_every_sketch_is_plain_loras_when_the_loss_is_linear_in_the_weight():
    r, k = 5, 2
    rng = np.random.default_rng(3)
    B, A, G = (torch.tensor(rng.normal(size=s)) for s in ((4, r), (r, 6), (4, 6)))

    def gradient(indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        whole_B, whole_A = B.clone().requires_grad_(), A.clone().requires_grad_()
        scale = sketched_scaling(lora_alpha=3.0, r=r, k=len(indices))
        (G * (scale * whole_B[:, indices] @ whole_A[indices])).sum().backward()
        return whole_B.grad, whole_A.grad

    sketched = [gradient(chosen) for chosen in every_sketch(r, k)]
    plain = gradient(np.arange(r))
    for side in (0, 1):
        mean = torch.stack([pair[side] for pair in sketched]).mean(dim=0)
        torch.testing.assert_close(mean, plain[side], atol=1e-12, rtol=1e-12)


@given(sizes)
def test_scatter_puts_back_exactly_what_take_took(rk):
    r, k = rk
    rng = np.random.default_rng(r * 10 + k)
    B, A = rng.normal(size=(3, r)), rng.normal(size=(r, 5))
    for chosen in every_sketch(r, k):
        into_B, into_A = np.zeros_like(B), np.zeros_like(A)
        scatter_add(into_B, into_A, *take(B, A, chosen), chosen, weight=0.5)
        mask = np.isin(np.arange(r), chosen)
        np.testing.assert_array_equal(into_B, np.where(mask, 0.5 * B, 0.0))
        np.testing.assert_array_equal(into_A, np.where(mask[:, None], 0.5 * A, 0.0))


def test_every_subset_is_drawn_equally_often():
    """Chi-square over 10 subsets, 9 degrees of freedom: 27.9 is its 99.9 % point."""
    r, k, draws = 5, 2, 4000
    counts = dict.fromkeys(combinations(range(r), k), 0)
    for seed in range(draws):
        rng = np.random.Generator(np.random.PCG64(seed))
        counts[tuple(draw_indices(r, k, rng).tolist())] += 1
    expected = draws / comb(r, k)
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 27.9


def test_two_ranks_are_drawn_together_as_often_as_without_replacement():
    r, k, draws = 6, 3, 4000
    together = np.zeros((r, r))
    for seed in range(draws):
        chosen = draw_indices(r, k, np.random.Generator(np.random.PCG64(seed)))
        together[np.ix_(chosen, chosen)] += 1 / draws
    pairs = together[~np.eye(r, dtype=bool)]
    expected = k * (k - 1) / (r * (r - 1))
    five_sigma = 5 * sqrt(expected * (1 - expected) / draws)
    np.testing.assert_allclose(pairs, expected, atol=five_sigma)
    np.testing.assert_allclose(np.diag(together), k / r, atol=5 * sqrt(0.25 / draws))


@given(st.integers(1, 64), st.data(), st.integers(0, 2**53 - 1))
def test_a_draw_is_sorted_without_repeats_and_in_range(r, data, seed):
    k = data.draw(st.integers(1, r))
    for indices in draw_sketch(seed, r, k, layers=3):
        assert indices.dtype == np.int64
        assert len(indices) == k
        assert (np.diff(indices) > 0).all()
        assert indices[0] >= 0
        assert indices[-1] < r


def test_a_stored_seed_replays_the_same_ranks_forever():
    """Golden draws: a server that restarts after an upgrade must scatter what it cut."""
    assert derive_seed(7, 3, "device-a") == GOLDEN_SEED
    assert [x.tolist() for x in draw_sketch(GOLDEN_SEED, r=16, k=4, layers=3)] == GOLDEN_SKETCH
    assert [x.tolist() for x in draw_sketch(0, r=8, k=3, layers=2)] == GOLDEN_SKETCH_OF_ZERO


def test_seeds_differ_by_task_round_and_device():
    seeds = {
        derive_seed(task, number, device)
        for task in range(5)
        for number in range(1, 12)
        for device in ("1", "11", "a", "b")
    }
    assert len(seeds) == 5 * 11 * 4
    assert max(seeds) < 2**53


def test_sketches_are_fresh_in_every_round_for_every_device_and_layer():
    """Of 2 x 20 sketches over 8 layers, some layer differs between any two."""
    sketches = {
        tuple(map(tuple, draw_sketch(derive_seed(0, number, device), 16, 4, layers=8)))
        for number in range(1, 21)
        for device in ("a", "b")
    }
    assert len(sketches) == 40
    assert all(len(set(sketch)) > 1 for sketch in sketches)


@pytest.mark.parametrize(("r", "k"), [(8, 0), (8, -1), (8, 9), (0, 1), (-3, 1)])
def test_impossible_sizes_are_refused_by_name(r, k):
    rng = np.random.Generator(np.random.PCG64(0))
    with pytest.raises(SketchError, match=f"={r if r < 1 else k} must be"):
        draw_indices(r, k, rng)
    with pytest.raises(SketchError, match=f"={r if r < 1 else k} must be"):
        sketched_scaling(16.0, r, k)


@given(sizes, st.floats(0.1, 100))
def test_plain_scaling_of_a_sketch_is_alpha_over_k(rk, alpha):
    r, k = rk
    assert sketched_scaling(alpha, r, k) == pytest.approx(alpha / k)
    assert sketched_scaling(alpha, r, r) == pytest.approx(lora_scaling(alpha, r))


@given(sizes, st.floats(0.1, 100))
def test_rank_stabilized_scaling_of_a_sketch_is_alpha_root_r_over_k(rk, alpha):
    r, k = rk
    assert sketched_scaling(alpha, r, k, use_rslora=True) == pytest.approx(alpha * sqrt(r) / k)
    assert lora_scaling(alpha, r, use_rslora=True) == pytest.approx(alpha / sqrt(r))


def test_the_largest_affordable_size_of_the_ladder_is_chosen():
    assert largest_sketch([2, 16, 4, 8], affordable_k=9) == 8
    assert largest_sketch([2, 4], affordable_k=1) is None
