import statistics
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.sketch import draw_sketch
from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.task import AdapterSpec, DenseSpec, LayerSpec
from server.aggregation.combining import combine
from server.aggregation.weighted_mean import RunningSum, WeightedUpdate, cut_slice
from tests.server.tasks import random_arrays, tiny_spec
from tests.server.updates import ADAPTER, an_update, trained, updates_of_a_round, values_per_number

ROBUST = [{"combination": "median"}, {"combination": "trimmed_mean", "trim": 0.3}]


def poisoned(update: WeightedUpdate, by: float) -> WeightedUpdate:
    arrays = {name: array + np.float32(by) for name, array in update.arrays.items()}
    return WeightedUpdate(arrays=arrays, indices=update.indices, weight=update.weight)


def wide_spec(**ways):
    """Few ranks of many numbers, as of a real model."""
    layers = [LayerSpec(name=f"{i}.q_proj", d_in=256, d_out=256) for i in range(4)]
    adapter = AdapterSpec(r=16, lora_alpha=16, target_modules=["q_proj"], layers=layers)
    return replace(tiny_spec(**ways), adapter=adapter)


def with_head(spec, width: int):
    """The task with one more dense parameter."""
    dense = [*spec.adapter.dense, DenseSpec(name="head", shape=[width])]
    return replace(spec, adapter=replace(spec.adapter, dense=dense))


@given(updates_of_a_round())
@settings(max_examples=20)
def test_mean_is_the_running_sum(updates):
    total = RunningSum(ADAPTER)
    for update in updates:
        total.add(update)
    expected, mean = total.finish(), combine(tiny_spec(combination="mean"), iter(updates))
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(mean.arrays[name], array)
    for name, touched in expected.touched.items():
        np.testing.assert_array_equal(mean.touched[name], touched)


@pytest.mark.parametrize("devices", [1, 2, 5, 8])
def test_median_on_full_ranks_is_numpys(devices):
    updates = [an_update(seed, ADAPTER.r) for seed in range(devices)]
    mean = combine(tiny_spec(combination="median"), updates)
    for name, array in mean.arrays.items():
        stack = np.array([update.arrays[name] for update in updates], np.float64)
        np.testing.assert_allclose(array, np.median(stack, axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("trim", "devices", "left_out"),
    [(0.0, 5, 0), (0.1, 9, 0), (0.1, 10, 1), (0.25, 8, 2), (0.49, 3, 1), (0.29, 100, 29)],
)
def test_trimmed_mean_on_full_ranks_leaves_out_the_floor_of_its_share_at_each_end(
    trim, devices, left_out
):
    updates = [an_update(seed, ADAPTER.r) for seed in range(devices)]
    mean = combine(tiny_spec(combination="trimmed_mean", trim=trim), updates)
    for name, array in mean.arrays.items():
        stack = np.array([update.arrays[name] for update in updates], np.float64)
        for index, value in np.ndenumerate(array):
            kept = sorted(stack[(slice(None), *index)])[left_out : devices - left_out]
            assert value == pytest.approx(statistics.fmean(kept), rel=1e-9, abs=1e-12)


@given(updates_of_a_round(most=7))
@settings(max_examples=30)
def test_median_is_over_the_devices_that_trained_the_rank_times_their_share(updates):
    mean = combine(tiny_spec(combination="median"), updates)
    expected = {name: np.zeros(s) for name, s in adapter_shapes(ADAPTER, ADAPTER.r).items()}
    for (name, index), values in values_per_number(updates).items():
        share = len(values) / len(updates)
        expected[name][index] = share * statistics.median(value for _, value in values)
    for name, array in expected.items():
        np.testing.assert_allclose(mean.arrays[name], array, rtol=1e-12, atol=1e-15)


@given(updates_of_a_round(), st.sampled_from(ROBUST))
@settings(max_examples=30)
def test_robust_combinations_touch_what_was_trained_and_leave_the_rest_zero(updates, ways):
    mean = combine(tiny_spec(**ways), updates)
    for i, layer in enumerate(ADAPTER.layers):
        warm = trained(updates, i)
        cold = np.setdiff1d(np.arange(ADAPTER.r), warm)
        np.testing.assert_array_equal(np.flatnonzero(mean.touched[layer.name]), warm)
        assert (mean.arrays[f"{layer.name}.lora_A"][cold] == 0).all()
        assert (mean.arrays[f"{layer.name}.lora_B"][:, cold] == 0).all()


@given(updates_of_a_round(), st.randoms(use_true_random=False), st.sampled_from(ROBUST))
@settings(max_examples=30)
def test_robust_combinations_do_not_depend_on_the_order_by_a_bit(updates, random, ways):
    spec = tiny_spec(**ways)
    one, other = combine(spec, updates), combine(spec, random.sample(updates, len(updates)))
    for name, array in one.arrays.items():
        assert other.arrays[name].tobytes() == array.tobytes()


@given(st.lists(st.tuples(st.integers(0, 2**32), st.integers(1, ADAPTER.r)), min_size=1))
@settings(max_examples=20)
def test_updates_that_agree_have_one_result_whatever_the_combination(devices):
    agreed = random_arrays(ADAPTER, ADAPTER.r, 1)
    updates = []
    for seed, k in devices:
        indices = draw_sketch(seed, ADAPTER.r, k, len(ADAPTER.layers))
        arrays = cut_slice(agreed, ADAPTER, indices)
        updates.append(WeightedUpdate(arrays=arrays, indices=indices, weight=1.0))
    plain, *robust = (combine(tiny_spec(**ways), updates) for ways in [{}, *ROBUST])
    for name, array in plain.arrays.items():
        for other in robust:
            np.testing.assert_allclose(other.arrays[name], array, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("ways", ROBUST)
@pytest.mark.parametrize("by", [1e6, -1e6])
def test_a_poisoned_update_moves_the_mean_but_not_a_robust_combination(ways, by):
    honest = [an_update(seed, ADAPTER.r) for seed in range(4)]
    updates = [*honest, poisoned(an_update(4, ADAPTER.r), by)]
    mean, robust = combine(tiny_spec(), updates), combine(tiny_spec(**ways), updates)
    for name in mean.arrays:
        stack = np.array([update.arrays[name] for update in honest], np.float64)
        assert (np.abs(mean.arrays[name]) > 1e5).all()
        assert (robust.arrays[name] >= stack.min(axis=0) - 1e-12).all()
        assert (robust.arrays[name] <= stack.max(axis=0) + 1e-12).all()


@pytest.mark.parametrize("ways", [{}, *ROBUST])
def test_a_round_without_updates_is_refused(ways):
    with pytest.raises(ValueError, match="no updates"):
        combine(tiny_spec(**ways), [])


def test_a_row_too_wide_to_be_read_at_once_has_the_same_median():
    spec = with_head(tiny_spec(combination="median"), 40_000)
    devices = 30  # 1.2 million numbers, above the 2**20 that are read at once
    updates = [an_update(seed, 2, spec=spec.adapter) for seed in range(devices)]
    mean = combine(spec, updates)
    stack = np.array([update.arrays["head"] for update in updates], np.float64)
    np.testing.assert_allclose(mean.arrays["head"], np.median(stack, axis=0), rtol=1e-12)


@pytest.mark.parametrize("ways", [{}, *ROBUST])
def test_memory_grows_by_less_than_a_twentieth_of_each_update(ways):
    """What is kept of each device in memory is which ranks it trained."""
    spec = wide_spec(**ways)
    one_update_bytes = 4 * 2 * 8 * 256 * 4

    def peak_bytes(devices: int) -> int:
        tracemalloc.start()
        combine(spec, (an_update(seed, 8, spec=spec.adapter) for seed in range(devices)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1)
    assert peak_bytes(60) - peak_bytes(3) < 57 * one_update_bytes / 20
