import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import NotFinite
from edge_sdk.sketch import draw_sketch
from edge_sdk.wire.messages import AdapterSpec, LayerSpec
from edge_sdk.wire.payload import adapter_shapes
from server.aggregation import (
    RunningSum,
    WeightedUpdate,
    check_magnitude,
    cut_slice,
    fold,
    initial_adapter,
    update_weight,
)
from tests.server.tasks import random_arrays, tiny_spec

SPEC = tiny_spec().adapter
FULL = [np.arange(SPEC.r)] * len(SPEC.layers)


def an_update(seed: int, k: int, weight: float = 1.0, spec: AdapterSpec = SPEC) -> WeightedUpdate:
    indices = draw_sketch(seed, spec.r, k, len(spec.layers))
    return WeightedUpdate(arrays=random_arrays(spec, k, seed), indices=indices, weight=weight)


def by_hand(adapter, updates, server_lr):
    """The rule with dense masks and Python sums, one number at a time in spirit."""
    total = sum(update.weight for update in updates)
    after = {name: array.astype(np.float64) for name, array in adapter.items()}
    for update in updates:
        share = server_lr * update.weight / total
        for layer, ranks in zip(SPEC.layers, update.indices, strict=True):
            for column, rank in enumerate(ranks):
                A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
                after[A][rank] += share * update.arrays[A][column]
                after[B][:, rank] += share * update.arrays[B][:, column]
        for dense in SPEC.dense:
            after[dense.name] += share * update.arrays[dense.name]
    return after


updates_of_a_round = st.lists(
    st.builds(
        an_update, st.integers(0, 2**32), st.integers(1, SPEC.r), st.sampled_from([1.0, 3.0, 40.0])
    ),
    min_size=1,
    max_size=6,
)


@given(updates_of_a_round, st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=50, deadline=None)
def test_fold_is_the_weighted_mean_of_the_scattered_updates(updates, server_lr):
    adapter = random_arrays(SPEC, SPEC.r, 99)
    after = fold(adapter, SPEC, server_lr, updates)
    expected = by_hand(adapter, updates, server_lr)
    assert after.keys() == adapter_shapes(SPEC, SPEC.r).keys()
    for name, array in after.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-7)


@given(updates_of_a_round, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_updates_does_not_matter(updates, random):
    shuffled = random.sample(updates, len(updates))
    adapter = random_arrays(SPEC, SPEC.r, 99)
    one, other = fold(adapter, SPEC, 1.0, updates), fold(adapter, SPEC, 1.0, shuffled)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-8)


@given(updates_of_a_round)
@settings(max_examples=50, deadline=None)
def test_ranks_nobody_trained_stay_bit_identical(updates):
    adapter = random_arrays(SPEC, SPEC.r, 99)
    for array in adapter.values():
        array[array < 0] = -0.0  # a sum with zero would turn it into +0.0
    after = fold(adapter, SPEC, 1.0, updates)
    for i, layer in enumerate(SPEC.layers):
        trained = np.unique(np.concatenate([update.indices[i] for update in updates]))
        cold = np.setdiff1d(np.arange(SPEC.r), trained)
        A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        assert after[A][cold].tobytes() == adapter[A][cold].tobytes()
        assert after[B][:, cold].tobytes() == adapter[B][:, cold].tobytes()
        assert (after[A][trained] != adapter[A][trained]).any(axis=1).all()
        assert (after[B][:, trained] != adapter[B][:, trained]).any(axis=0).all()


@given(st.integers(1, 5))
@settings(deadline=None)
def test_full_sketches_give_the_plain_mean_of_federated_averaging(devices):
    updates = [an_update(seed, SPEC.r) for seed in range(devices)]
    adapter = random_arrays(SPEC, SPEC.r, 99)
    after = fold(adapter, SPEC, 1.0, updates)
    for name, array in after.items():
        mean = np.mean([update.arrays[name].astype(np.float64) for update in updates], axis=0)
        np.testing.assert_allclose(array, adapter[name] + mean, rtol=1e-6, atol=1e-7)


@given(updates_of_a_round, st.integers(0, 6))
@settings(max_examples=50, deadline=None)
def test_merged_partial_sums_equal_one_sum(updates, cut):
    whole, left, right = RunningSum(SPEC), RunningSum(SPEC), RunningSum(SPEC)
    for i, update in enumerate(updates):
        whole.add(update)
        (left if i < cut else right).add(update)
    left.merge(right)
    assert left.total_weight == whole.total_weight
    for name, mean in whole.mean().items():
        np.testing.assert_allclose(left.mean()[name], mean, rtol=1e-12, atol=1e-15)


def test_a_mean_and_a_step_of_no_updates_are_refused():
    with pytest.raises(ValueError, match="no updates"):
        RunningSum(SPEC).mean()
    with pytest.raises(ValueError, match="no updates"):
        RunningSum(SPEC).apply(random_arrays(SPEC, SPEC.r, 1), 1.0)


def test_memory_of_a_sum_does_not_grow_with_the_cohort():
    spec = AdapterSpec(
        r=16,
        lora_alpha=16,
        target_modules=["q"],
        layers=[LayerSpec(name=f"{i}.q", d_in=256, d_out=256) for i in range(4)],
    )
    adapter = initial_adapter(spec, np.random.default_rng(0))

    def peak_bytes(devices: int) -> int:
        tracemalloc.start()
        fold(adapter, spec, 1.0, (an_update(seed, 8, spec=spec) for seed in range(devices)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1)
    one_update_bytes = 4 * 2 * 8 * 256 * 4
    assert peak_bytes(50) - peak_bytes(2) < one_update_bytes


def test_a_slice_holds_exactly_the_ranks_of_its_sketch_and_the_dense_parameters_whole():
    adapter = random_arrays(SPEC, SPEC.r, 5)
    indices = draw_sketch(3, SPEC.r, 2, len(SPEC.layers))
    cut = cut_slice(adapter, SPEC, indices)
    assert {name: array.shape for name, array in cut.items()} == adapter_shapes(SPEC, 2)
    for layer, ranks in zip(SPEC.layers, indices, strict=True):
        A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        for column, rank in enumerate(ranks):
            assert (cut[A][column] == adapter[A][rank]).all()
            assert (cut[B][:, column] == adapter[B][:, rank]).all()
    for dense in SPEC.dense:
        assert (cut[dense.name] == adapter[dense.name]).all()


def test_sending_a_slice_back_as_its_own_update_adds_it_onto_the_same_ranks():
    adapter = random_arrays(SPEC, SPEC.r, 5)
    indices = draw_sketch(3, SPEC.r, 2, len(SPEC.layers))
    cut = cut_slice(adapter, SPEC, indices)
    update = WeightedUpdate(arrays=cut, indices=indices, weight=1.0)
    again = cut_slice(fold(adapter, SPEC, 1.0, [update]), SPEC, indices)
    for name, array in again.items():
        np.testing.assert_allclose(array, 2 * cut[name], rtol=1e-6)


def test_the_initial_adapter_does_nothing_yet_but_can_learn():
    adapter = initial_adapter(SPEC, np.random.default_rng(1))
    assert {name: a.shape for name, a in adapter.items()} == adapter_shapes(SPEC, SPEC.r)
    for layer in SPEC.layers:
        A, B = adapter[f"{layer.name}.lora_A"], adapter[f"{layer.name}.lora_B"]
        bound = 1 / np.sqrt(layer.d_in)
        assert (B == 0).all()
        assert np.abs(A).max() <= bound
        assert np.abs(A).max() > 0.8 * bound
        assert A.min() < 0 < A.max()
    assert (adapter["score.bias"] == 0).all()
    assert 0 < np.abs(adapter["score.weight"]).max() < 0.2


def test_the_initial_adapter_is_the_same_for_the_same_seed_only():
    one, same, other = (initial_adapter(SPEC, np.random.default_rng(s)) for s in (1, 1, 2))
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


def test_weights_are_equal_or_by_examples():
    assert update_weight("uniform", 40) == 1.0
    assert update_weight("examples", 40) == 40.0


def test_a_step_beyond_all_measure_is_refused_and_an_ordinary_one_is_not():
    update = random_arrays(SPEC, 2, 0)
    check_magnitude(update, 1.0)
    update["score.bias"][1] = -3e29
    check_magnitude(update, 1.0)
    with pytest.raises(NotFinite, match=r"score\.bias"):
        check_magnitude(update, 10.0)


def test_the_largest_updates_that_are_let_in_keep_the_adapter_finite():
    update = an_update(0, SPEC.r)
    for array in update.arrays.values():
        array[:] = 9e29
    check_magnitude(update.arrays, 1.0)
    after = random_arrays(SPEC, SPEC.r, 5)
    for _ in range(3):
        after = fold(after, SPEC, 1.0, [update, update])
    assert all(np.isfinite(array).all() for array in after.values())
