from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.rank_rows import rank_rows
from server.aggregation.combining import combine
from server.aggregation.optimizer_state import KEPT, decode_state, empty_state, encode_state
from server.aggregation.server_optimizers import step
from server.aggregation.weighted_mean import MeanUpdate, cut_slice
from tests.server.tasks import random_arrays, tiny_spec
from tests.server.updates import ADAPTER, an_update, trained, updates_of_a_round, values_per_number

WITH_MEMORY = ["momentum", "adam"]
EVERY = ["average", *WITH_MEMORY]
WAYS = {"server_lr": 0.7, "momentum": 0.8, "second_momentum": 0.95, "epsilon": 1e-3}

rank_sets = st.sets(st.integers(0, ADAPTER.r - 1)).map(sorted)
rounds_of_ranks = st.lists(st.tuples(rank_sets, rank_sets), min_size=1, max_size=5)
"""For each round, the ranks of each layer that anybody trained."""


def a_spec(optimizer: str):
    return tiny_spec(server_optimizer=optimizer, **WAYS)


def a_mean(seed: int, ranks) -> MeanUpdate:
    """A random mean update of the given ranks of each layer; zero elsewhere."""
    arrays = {n: a.astype(np.float64) for n, a in random_arrays(ADAPTER, ADAPTER.r, seed).items()}
    touched = {}
    for layer, warm in zip(ADAPTER.layers, ranks, strict=True):
        touched[layer.name] = np.isin(np.arange(ADAPTER.r), warm)
        arrays[f"{layer.name}.lora_A"][~touched[layer.name]] = 0.0
        arrays[f"{layer.name}.lora_B"][:, ~touched[layer.name]] = 0.0
    return MeanUpdate(arrays=arrays, touched=touched)


def the_adapter():
    """Version 0 of a test, with negative zeros, which a sum with zero would lose."""
    adapter = random_arrays(ADAPTER, ADAPTER.r, 99)
    for array in adapter.values():
        array[array < -0.1] = -0.0
    return adapter


def move(spec, means):
    """All versions and states that some rounds lead to, the initial ones first."""
    versions, states = [the_adapter()], [None]
    for mean in means:
        adapter, state = step(versions[-1], mean, spec, states[-1])
        versions.append(adapter)
        states.append(state)
    return versions, states


def means_of(rounds):
    return [a_mean(i, ranks) for i, ranks in enumerate(rounds)]


def bytes_of(name: str, ranks, arrays) -> bytes:
    return rank_rows(arrays, ADAPTER)[name][ranks].tobytes()


def state_bytes(name: str, ranks, state) -> list[bytes]:
    return [a[ranks].tobytes() for key, a in sorted(state.items()) if key.startswith(f"{name}.")]


@pytest.mark.parametrize("optimizer", EVERY)
@given(rounds_of_ranks)
@settings(max_examples=25)
def test_ranks_nobody_trained_stay_bit_identical_in_adapter_and_state(optimizer, rounds):
    spec = a_spec(optimizer)
    versions, states = move(spec, means_of(rounds))
    for i, ranks in enumerate(rounds):
        state_before = states[i] or empty_state(spec)
        for layer, warm in zip(ADAPTER.layers, ranks, strict=True):
            cold = np.setdiff1d(np.arange(ADAPTER.r), warm)
            for name in (f"{layer.name}.lora_A", f"{layer.name}.lora_B"):
                before, after = (bytes_of(name, cold, x) for x in versions[i : i + 2])
                assert before == after
                moved = [rank_rows(x, ADAPTER)[name][warm] for x in versions[i : i + 2]]
                assert (moved[0] != moved[1]).any(axis=1).all()
                if optimizer != "average":
                    before = state_bytes(name, cold, state_before)
                    assert before == state_bytes(name, cold, states[i + 1])
                    assert len(before) == len(KEPT[optimizer])


@pytest.mark.parametrize("optimizer", WITH_MEMORY)
@given(rounds_of_ranks)
@settings(max_examples=25)
def test_for_every_rank_the_rounds_without_it_might_never_have_been(optimizer, rounds):
    spec, means = a_spec(optimizer), means_of(rounds)
    versions, states = move(spec, means)
    for i, layer in enumerate(ADAPTER.layers):
        name = f"{layer.name}.lora_B"
        for rank in range(ADAPTER.r):
            own = [mean for mean, ranks in zip(means, rounds, strict=True) if rank in ranks[i]]
            own_versions, own_states = move(spec, own)
            assert bytes_of(name, rank, own_versions[-1]) == bytes_of(name, rank, versions[-1])
            state = own_states[-1] or empty_state(spec)
            assert state_bytes(name, rank, state) == state_bytes(name, rank, states[-1])


@given(updates_of_a_round(), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=30)
def test_average_adds_the_weighted_mean_bit_for_bit(updates, server_lr):
    """The rule of the method in plain Python numbers, one at a time."""
    spec = tiny_spec(server_lr=server_lr)
    adapter = the_adapter()
    after, state = step(adapter, combine(spec, updates), spec, None)
    total = sum(update.weight for update in updates)
    expected = {name: array.copy() for name, array in adapter.items()}
    for (name, index), values in values_per_number(updates).items():
        summed = 0.0
        for weight, value in values:
            summed += weight * value
        expected[name][index] = np.float32(
            float(adapter[name][index]) + server_lr * (summed / total)
        )
    assert state is None
    assert after.keys() == adapter_shapes(ADAPTER, ADAPTER.r).keys()
    for name, array in expected.items():
        assert after[name].dtype == np.float32
        assert after[name].tobytes() == array.tobytes()


def test_heavy_ball_on_full_sketches_is_the_textbooks():
    spec = a_spec("momentum")
    means = means_of([(range(ADAPTER.r),) * 2] * 6)
    versions, _ = move(spec, means)
    for name, after in versions[-1].items():
        x, velocity = versions[0][name].astype(np.float64), 0.0
        for mean in means:
            velocity = 0.8 * velocity + mean.arrays[name]
            x = x + 0.7 * velocity
        np.testing.assert_allclose(after, x, rtol=1e-5, atol=1e-6)


def test_adam_on_full_sketches_is_the_textbooks():
    spec = a_spec("adam")
    means = means_of([(range(ADAPTER.r),) * 2] * 6)
    versions, _ = move(spec, means)
    for name, after in versions[-1].items():
        x, m, v = versions[0][name].astype(np.float64), 0.0, 0.0
        for t, mean in enumerate(means, start=1):
            m = 0.8 * m + (1 - 0.8) * mean.arrays[name]
            v = 0.95 * v + (1 - 0.95) * mean.arrays[name] ** 2
            x = x + 0.7 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
        np.testing.assert_allclose(after, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("optimizer", WITH_MEMORY)
def test_dense_parameters_move_and_age_in_every_round(optimizer):
    spec = a_spec(optimizer)
    versions, states = move(spec, means_of([([], []), ([], []), ([], [])]))
    for dense in ADAPTER.dense:
        for before, after in pairwise(versions):
            assert (before[dense.name] != after[dense.name]).all()
    if optimizer == "adam":
        assert [state["score.bias.steps"].item() for state in states[1:]] == [1, 2, 3]


def test_the_first_step_of_adam_is_of_the_size_of_the_server_step():
    """Bias correction: without it the first step would be too small by far."""
    spec = a_spec("adam")
    mean = a_mean(0, (range(ADAPTER.r),) * 2)
    (before, after), _ = move(spec, [mean])
    for name, update in mean.arrays.items():
        expected = 0.7 * update / (np.abs(update) + 1e-3)
        np.testing.assert_allclose(after[name] - before[name], expected, atol=1e-6)


@pytest.mark.parametrize("optimizer", WITH_MEMORY)
@given(rounds_of_ranks)
@settings(max_examples=15)
def test_a_state_that_was_stored_in_between_changes_nothing(optimizer, rounds):
    spec, means = a_spec(optimizer), means_of(rounds)
    versions, states = move(spec, means)
    adapter, state = the_adapter(), None
    for mean in means:
        adapter, state = step(adapter, mean, spec, state)
        state = decode_state(encode_state(state), spec)
    for name, array in versions[-1].items():
        assert adapter[name].tobytes() == array.tobytes()
    assert encode_state(state) == encode_state(states[-1])


@pytest.mark.parametrize("optimizer", EVERY)
def test_a_step_changes_nothing_it_was_given(optimizer):
    spec = a_spec(optimizer)
    first, second = means_of([([0, 3], [1])] * 2)
    adapter, state = step(the_adapter(), first, spec, None)
    given_arrays = [adapter, second.arrays, state or {}]
    before = [{name: a.copy() for name, a in arrays.items()} for arrays in given_arrays]
    step(adapter, second, spec, state)
    for arrays, copies in zip(given_arrays, before, strict=True):
        for name, copy in copies.items():
            np.testing.assert_array_equal(arrays[name], copy)


def test_momentum_without_memory_is_the_average():
    spec = tiny_spec(server_optimizer="momentum", momentum=0.0, server_lr=0.7)
    means = means_of([([0, 1, 5], [2]), ([1, 7], [])])
    versions, plain = move(spec, means)[0], move(a_spec("average"), means)[0]
    for name, array in plain[-1].items():
        np.testing.assert_array_equal(versions[-1][name], array)


def test_sending_a_slice_back_as_its_own_update_adds_it_onto_the_same_ranks():
    spec, update = tiny_spec(), an_update(3, 2)
    adapter = random_arrays(ADAPTER, ADAPTER.r, 5)
    update.arrays.update(cut_slice(adapter, ADAPTER, update.indices))
    after, _ = step(adapter, combine(spec, [update]), spec, None)
    for name, array in cut_slice(after, ADAPTER, update.indices).items():
        np.testing.assert_allclose(array, 2 * update.arrays[name], rtol=1e-6)


@pytest.mark.parametrize("optimizer", EVERY)
def test_the_largest_updates_that_are_let_in_keep_everything_finite(optimizer):
    spec = tiny_spec(server_optimizer=optimizer, momentum=0.999999999, server_lr=1e8)
    update = an_update(0, 2)
    for array in update.arrays.values():
        array[:] = 9e21  # times the step size, just below the 1e30 that are let in
    adapter, state = the_adapter(), None
    for _ in range(3):
        adapter, state = step(adapter, combine(spec, [update] * 2), spec, state)
    for array in [*adapter.values(), *(state or {}).values()]:
        assert np.isfinite(array).all()
    assert np.abs(adapter["score.bias"]).min() > 1e6


@pytest.mark.parametrize("optimizer", WITH_MEMORY)
def test_an_adapter_stops_at_the_largest_float32(optimizer):
    spec = tiny_spec(server_optimizer=optimizer, server_lr=1e30, epsilon=1e-30)
    mean = a_mean(0, ([0], [0]))
    for array in mean.arrays.values():
        array *= 1e31
    adapter, state = the_adapter(), None
    for _ in range(3):
        adapter, state = step(adapter, mean, spec, state)
    largest = np.finfo(np.float32).max
    for array in [*adapter.values(), *state.values()]:
        assert np.isfinite(array).all()
        assert np.abs(array).max() <= largest


@pytest.mark.parametrize("combination", ["mean", "median", "trimmed_mean"])
@pytest.mark.parametrize("optimizer", EVERY)
def test_from_updates_to_the_next_version_only_trained_ranks_move(combination, optimizer):
    spec = tiny_spec(combination=combination, server_optimizer=optimizer)
    updates = [an_update(seed, 2) for seed in range(3)]
    before = the_adapter()
    after, _ = step(before, combine(spec, updates), spec, None)
    for i, layer in enumerate(ADAPTER.layers):
        for name in (f"{layer.name}.lora_A", f"{layer.name}.lora_B"):
            moved = rank_rows(before, ADAPTER)[name] != rank_rows(after, ADAPTER)[name]
            assert np.flatnonzero(moved.any(axis=1)).tolist() == trained(updates, i).tolist()
