import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import NotFinite
from edge_sdk.sketch import draw_sketch, scatter_add
from edge_sdk.wire.payload import adapter_shapes, encode, view
from edge_sdk.wire.rank_rows import rank_rows
from edge_sdk.wire.task import AdapterSpec, AggregationSpec, LayerSpec
from server.aggregation.weighted_mean import (
    RunningSum,
    WeightedUpdate,
    check_magnitude,
    cut_slice,
    initial_adapter,
    update_weight,
)
from tests.server.tasks import random_arrays
from tests.server.updates import ADAPTER, an_update, trained, updates_of_a_round, values_per_number


def the_sum(updates, spec: AdapterSpec = ADAPTER) -> RunningSum:
    total = RunningSum(spec)
    for update in updates:
        total.add(update)
    return total


def the_mean(updates):
    return the_sum(updates).finish()


@given(updates_of_a_round())
@settings(max_examples=50)
def test_the_mean_is_that_of_the_scattered_updates_bit_for_bit(updates):
    mean = the_mean(updates)
    total = sum(update.weight for update in updates)
    expected = {name: np.zeros(s) for name, s in adapter_shapes(ADAPTER, ADAPTER.r).items()}
    for (name, index), values in values_per_number(updates).items():
        summed = 0.0
        for weight, value in values:
            summed += weight * value
        expected[name][index] = summed / total
    assert mean.arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(mean.arrays[name], array)


@given(updates_of_a_round())
@settings(max_examples=50)
def test_a_rank_is_touched_if_and_only_if_a_device_trained_it(updates):
    mean = the_mean(updates)
    assert mean.touched.keys() == {layer.name for layer in ADAPTER.layers}
    for i, layer in enumerate(ADAPTER.layers):
        np.testing.assert_array_equal(np.flatnonzero(mean.touched[layer.name]), trained(updates, i))


@given(updates_of_a_round(), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_the_order_of_updates_does_not_matter(updates, random):
    shuffled = random.sample(updates, len(updates))
    one, other = the_mean(updates), the_mean(shuffled)
    for name, array in one.arrays.items():
        np.testing.assert_allclose(other.arrays[name], array, rtol=1e-12, atol=1e-15)


@given(st.integers(1, 5))
def test_full_sketches_give_the_plain_mean_of_federated_averaging(devices):
    updates = [an_update(seed, ADAPTER.r) for seed in range(devices)]
    for name, array in the_mean(updates).arrays.items():
        mean = np.mean([update.arrays[name].astype(np.float64) for update in updates], axis=0)
        np.testing.assert_allclose(array, mean, rtol=1e-12, atol=1e-15)


@given(updates_of_a_round(fewest=3), st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=50)
def test_partial_sums_merge_in_any_tree_to_the_same_mean(updates, cut, other_cut):
    first, last = sorted((cut, other_cut))
    parts = [updates[:first], updates[first:last], updates[last:]]
    left, right = ([the_sum(part) for part in parts] for _ in range(2))
    left[0].merge(left[1])
    left[0].merge(left[2])  # (a + b) + c
    right[1].merge(right[2])
    right[0].merge(right[1])  # a + (b + c)
    whole = the_mean(updates)
    for total in (left[0], right[0]):
        assert total.total_weight == sum(update.weight for update in updates)
        mean = total.finish()
        for name, array in whole.arrays.items():
            np.testing.assert_allclose(mean.arrays[name], array, rtol=1e-12, atol=1e-15)
        for name, touched in whole.touched.items():
            np.testing.assert_array_equal(mean.touched[name], touched)


def test_a_mean_of_no_updates_and_a_second_mean_of_one_sum_are_refused():
    with pytest.raises(ValueError, match="no updates"):
        RunningSum(ADAPTER).finish()
    total = the_sum([an_update(0, 2)])
    total.finish()
    with pytest.raises(ValueError, match="no updates"):
        total.finish()


def test_memory_of_a_mean_is_one_adapter_and_does_not_grow_with_the_cohort():
    spec = AdapterSpec(
        r=16,
        lora_alpha=16,
        target_modules=["q"],
        layers=[LayerSpec(name=f"{i}.q", d_in=256, d_out=256) for i in range(4)],
    )
    adapter_bytes = sum(8 * np.prod(shape) for shape in adapter_shapes(spec, spec.r).values())
    one_update_bytes = 4 * 2 * 8 * 256 * 4

    def peak_bytes(devices: int, k: int) -> int:
        tracemalloc.start()
        the_sum((an_update(seed, k, spec=spec) for seed in range(devices)), spec).finish()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1, 8)
    assert peak_bytes(50, 8) - peak_bytes(2, 8) < one_update_bytes
    assert peak_bytes(2, 1) < 1.5 * adapter_bytes


def test_a_slice_holds_exactly_the_ranks_of_its_sketch_and_the_dense_parameters_whole():
    adapter = random_arrays(ADAPTER, ADAPTER.r, 5)
    indices = draw_sketch(3, ADAPTER.r, 2, len(ADAPTER.layers))
    cut = cut_slice(adapter, ADAPTER, indices)
    assert {name: array.shape for name, array in cut.items()} == adapter_shapes(ADAPTER, 2)
    for layer, ranks in zip(ADAPTER.layers, indices, strict=True):
        A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        for column, rank in enumerate(ranks):
            assert (cut[A][column] == adapter[A][rank]).all()
            assert (cut[B][:, column] == adapter[B][:, rank]).all()
    for dense in ADAPTER.dense:
        assert (cut[dense.name] == adapter[dense.name]).all()


@pytest.mark.parametrize("wire_dtype", ["fp32", "bf16"])
def test_a_sum_has_the_bits_of_adding_one_weighted_update_after_another(wire_dtype):
    """Scattering whole tensors is the definition; row by row is what is fast."""
    shapes = adapter_shapes(ADAPTER, ADAPTER.r)
    expected = {name: np.zeros(shape) for name, shape in shapes.items()}
    total = RunningSum(ADAPTER)
    for seed, weight in enumerate([1.0, 0.3, 1.0, 40.0]):
        update = an_update(seed, 4, weight)
        body = encode(update.arrays, wire_dtype)
        arrays = view(body, adapter_shapes(ADAPTER, 4), wire_dtype)
        total.add(WeightedUpdate(arrays=arrays, indices=update.indices, weight=weight))
        wide = {name: array.astype(np.float64) for name, array in arrays.items()}
        for layer, ranks in zip(ADAPTER.layers, update.indices, strict=True):
            A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
            scatter_add(expected[B], expected[A], wide[B], wide[A], ranks, weight)
        for dense in ADAPTER.dense:
            expected[dense.name] += weight * wide[dense.name]
    found = total.finish().arrays
    for name, array in expected.items():
        assert found[name].tobytes() == (array / 42.3).tobytes()


def test_a_row_per_rank_is_a_view_that_writes_through():
    arrays = random_arrays(ADAPTER, ADAPTER.r, 5)
    rows = rank_rows(arrays, ADAPTER)
    assert list(rows) == list(adapter_shapes(ADAPTER, ADAPTER.r))
    for name, row in rows.items():
        row[-1] = 7.0
        of_rank = {"A": np.s_[-1], "B": np.s_[:, -1]}.get(name[-1], np.s_[...])
        assert (arrays[name][of_rank] == 7.0).all()
        assert (arrays[name] == 7.0).sum() == row.shape[1]


def test_the_initial_adapter_does_nothing_yet_but_can_learn():
    adapter = initial_adapter(ADAPTER, np.random.default_rng(1))
    assert {name: a.shape for name, a in adapter.items()} == adapter_shapes(ADAPTER, ADAPTER.r)
    for layer in ADAPTER.layers:
        A, B = adapter[f"{layer.name}.lora_A"], adapter[f"{layer.name}.lora_B"]
        bound = 1 / np.sqrt(layer.d_in)
        assert (B == 0).all()
        assert np.abs(A).max() <= bound
        assert np.abs(A).max() > 0.8 * bound
        assert A.min() < 0 < A.max()
    assert (adapter["score.bias"] == 0).all()
    assert 0 < np.abs(adapter["score.weight"]).max() < 0.2


def test_the_initial_adapter_is_the_same_for_the_same_seed_only():
    one, same, other = (initial_adapter(ADAPTER, np.random.default_rng(s)) for s in (1, 1, 2))
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


def weight(weighting="uniform", examples=40, participation=1.0, staleness=0, **ways):
    spec = AggregationSpec(weighting=weighting, **ways)
    return update_weight(spec, examples=examples, participation=participation, staleness=staleness)


def test_weights_are_equal_or_by_examples_or_by_one_over_participation():
    assert weight("uniform", participation=0.5) == 1.0
    assert weight("examples", participation=0.5) == 40.0
    assert weight("inverse_probability", participation=0.5) == 2.0
    assert weight("inverse_probability", participation=1.0) == 1.0


def test_a_device_that_hardly_ever_takes_part_weighs_ten_times_as_much_and_no_more():
    assert weight("inverse_probability", participation=0.1) == 10.0
    assert weight("inverse_probability", participation=0.001) == 10.0


@pytest.mark.parametrize("weighting", ["uniform", "examples", "inverse_probability"])
def test_a_stale_update_weighs_less_whatever_else_weighs(weighting):
    fresh = weight(weighting, participation=0.5)
    assert weight(weighting, participation=0.5, staleness=3) == fresh * 0.5
    assert weight(weighting, participation=0.5, staleness=3, staleness_exponent=0.0) == fresh
    assert weight(weighting, participation=0.5, staleness=1, staleness_exponent=2.0) == fresh / 4


def test_a_round_of_nothing_but_very_stale_updates_still_has_a_mean():
    light = weight(staleness=9, staleness_exponent=1e300)
    update = an_update(0, ADAPTER.r, light)
    mean = the_mean([update])
    for name, array in update.arrays.items():
        np.testing.assert_allclose(mean.arrays[name], array, rtol=1e-12)


def test_a_step_beyond_all_measure_is_refused_and_an_ordinary_one_is_not():
    update = random_arrays(ADAPTER, 2, 0)
    check_magnitude(update, 1.0)
    update["score.bias"][1] = -3e29
    check_magnitude(update, 1.0)
    with pytest.raises(NotFinite, match=r"score\.bias"):
        check_magnitude(update, 10.0)
