"""Every federated LoRA method keeps its own algebra; all in float64 but for what is stored."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.sketch import derive_seed
from edge_sdk.wire.task import DenseSpec
from server.aggregation.weighted_mean import WeightedUpdate, cut_slice, initial_adapter
from server.methods import METHODS, method_of
from server.methods.base_change import rest_of
from server.methods.cost import adapter_memory_bytes, downlink_bytes, factor_numbers
from server.methods.error import aggregation_error
from server.methods.flexlora import thin_svd
from server.methods.method import GlobalModel, Method, Turn
from tests.server.tasks import tiny_spec

R, RANKS = 6, (1, 2, 3, 6)
STORED = 1e-6  # adapters are stored in float32
EXACT = ("fslora-alternating", "ffa-lora", "rolora", "flora", "fedex-lora")


def spec_of(r: int = R, weighting: str = "uniform"):
    spec = tiny_spec(r=r, sketch_sizes=[r])
    adapter = replace(spec.adapter, dense=[DenseSpec(name="head.weight", shape=[3, 5])])
    return replace(
        spec,
        adapter=adapter,
        policy=replace(spec.policy, sketch_sizes=[k for k in RANKS if k <= r]),
        aggregation=replace(spec.aggregation, weighting=weighting),
    )


def started(spec, rng) -> GlobalModel:
    """An adapter in mid-training: B is no longer zero."""
    adapter = initial_adapter(spec.adapter, rng)
    for name, array in adapter.items():
        if name.endswith("lora_B"):
            adapter[name] = rng.normal(size=array.shape).astype(np.float32)
    return GlobalModel(adapter=adapter)


def updates_of(method: Method, spec, model, ks, rng, weights=None, number=1):
    """What devices send: random steps on their ranks, none on a factor that is not trained."""
    weights = weights or [1.0] * len(ks)
    found = []
    for device, (k, weight) in enumerate(zip(ks, weights, strict=True)):
        turn = Turn(seed=derive_seed(3, number, str(device)), task_seed=3)
        indices = method.draw(spec, k, turn)
        arrays = {
            name: rng.normal(scale=0.1, size=array.shape).astype(np.float32)
            for name, array in cut_slice(model.adapter, spec.adapter, indices).items()
        }
        for name in arrays:
            if ".lora_" in name and name[-1] not in method.factors(number):
                arrays[name] = np.zeros_like(arrays[name])
        found.append(WeightedUpdate(arrays=arrays, indices=indices, weight=weight))
    return found


def played(name, *, ks=None, weights=None, seed=0, r=R, number=1, weighting="uniform"):
    rng = np.random.default_rng(seed)
    method, spec = method_of(name), spec_of(r, weighting)
    model = started(spec, rng)
    ks = [r] * 3 if ks is None else ks
    updates = updates_of(method, spec, model, ks, rng, weights, number)
    after = method.fold(spec, model, iter(updates), np.random.default_rng(1))
    return method, spec, model, updates, after


def pair(spec, model, update, layer):
    """``B, A`` of one device after its local steps, float64."""
    before = cut_slice(model.adapter, spec.adapter, update.indices)
    return [
        before[f"{layer}.lora_{x}"].astype(np.float64) + update.arrays[f"{layer}.lora_{x}"]
        for x in "BA"
    ]


def mean_product(method, spec, model, updates, layer):
    total = sum(update.weight for update in updates)
    products = []
    for update in updates:
        B, A = pair(spec, model, update, layer)
        scale = method.scaling(spec.adapter, len(update.indices[0]))
        products.append(update.weight / total * scale * (B @ A))
    return sum(products)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 2.0]])
def test_exact_methods_deploy_the_mean_of_the_devices_products(name, weights):
    numbers = (1, 2) if name in ("fslora-alternating", "rolora") else (1,)
    for number in numbers:
        ks = [R] * 3 if METHODS[name].has_equal_ranks else [1, 3, 6]
        method, spec, model, updates, after = played(name, ks=ks, weights=weights, number=number)
        assert aggregation_error(method, spec, model, updates, after) < STORED


@pytest.mark.parametrize("name", ["fslora", "fedit", "hetlora"])
def test_a_product_of_means_is_not_the_mean_of_products(name):
    method, spec, model, updates, after = played(name)
    assert aggregation_error(method, spec, model, updates, after) > 1e-3


def test_flora_stacks_to_the_mean_of_the_scaled_products():
    method, spec, model, updates, after = played("flora", ks=[1, 2, 6], weights=[1.0, 5.0, 2.0])
    for layer in spec.adapter.layers:
        np.testing.assert_allclose(
            after.base_change[layer.name],
            mean_product(method, spec, model, updates, layer.name),
            atol=STORED,
        )
        assert not after.adapter[f"{layer.name}.lora_B"].any()
    assert after.change_rank == 1 + 2 + 6


def test_flora_adds_round_upon_round():
    method, spec, model, updates, after = played("flora", ks=[2, 3])
    again = method.fold(
        spec, replace(model, base_change=after.base_change), updates, np.random.default_rng(1)
    )
    for name, change in after.base_change.items():
        np.testing.assert_allclose(again.base_change[name], 2 * change, rtol=1e-5)


def test_fedex_base_and_adapter_together_are_the_mean_of_products():
    method, spec, model, updates, after = played("fedex-lora", weights=[1.0, 2.0, 4.0])
    scale = method.scaling(spec.adapter, R)
    for layer in spec.adapter.layers:
        B, A = (after.adapter[f"{layer.name}.lora_{x}"].astype(np.float64) for x in "BA")
        np.testing.assert_allclose(
            after.base_change[layer.name] + scale * B @ A,
            mean_product(method, spec, model, updates, layer.name),
            atol=10 * STORED,
        )


def test_flexlora_is_exact_when_the_rank_suffices():
    method, spec, model, updates, after = played("flexlora", ks=[1, 2, 3])
    assert aggregation_error(method, spec, model, updates, after) < STORED


def test_flexlora_leaves_the_least_of_the_mean_product_out():
    """Eckart and Young: no product of that rank is nearer than the cut decomposition."""
    method, spec, model, updates, after = played("flexlora", ks=[6, 6])
    for layer in spec.adapter.layers:
        mean = mean_product(method, spec, model, updates, layer.name)
        scale = method.scaling(spec.adapter, R)
        B, A = (after.adapter[f"{layer.name}.lora_{x}"].astype(np.float64) for x in "BA")
        left_out = np.linalg.svd(mean, compute_uv=False)[R:]
        assert left_out.any()
        np.testing.assert_allclose(
            np.linalg.norm(mean - scale * B @ A), np.linalg.norm(left_out), rtol=1e-4
        )


def test_flexlora_puts_the_root_of_each_value_in_both_factors_largest_first():
    _, spec, _, _, after = played("flexlora", ks=[3, 6])
    for layer in spec.adapter.layers:
        rows = np.linalg.norm(after.adapter[f"{layer.name}.lora_A"], axis=1)
        columns = np.linalg.norm(after.adapter[f"{layer.name}.lora_B"], axis=0)
        np.testing.assert_allclose(rows, columns, rtol=1e-4)
        assert all(a >= b for a, b in pairwise(columns))


def test_flexlora_ranks_that_a_mean_does_not_need_can_still_learn():
    """Zero in both factors has no gradient, for ever."""
    _, spec, _, _, after = played("flexlora", ks=[1, 1])
    for layer in spec.adapter.layers:
        assert not after.adapter[f"{layer.name}.lora_B"][:, 2:].any()
        assert after.adapter[f"{layer.name}.lora_A"][2:].any(axis=1).all()


def test_thin_svd_is_that_of_the_product():
    rng = np.random.default_rng(4)
    left, right = rng.normal(size=(30, 7)), rng.normal(size=(7, 20))
    U, values, V = thin_svd(left, right)
    assert (U.shape, V.shape) == ((30, 7), (7, 20))
    np.testing.assert_allclose(U * values @ V, left @ right, atol=1e-12)
    np.testing.assert_allclose(U.T @ U, np.eye(7), atol=1e-12)


def test_hetlora_by_hand_on_two_devices():
    """One rank of two numbers against two ranks; norms 3 and 6, so shares 1/3 and 2/3."""
    spec = tiny_spec(r=2, dense=False, sketch_sizes=[1, 2])
    layer = replace(spec.adapter.layers[0], d_in=2, d_out=2)
    spec = replace(
        spec,
        adapter=replace(spec.adapter, layers=[layer]),
    )
    A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
    model = GlobalModel(adapter={A: np.zeros((2, 2), "f4"), B: np.zeros((2, 2), "f4")})
    small = {A: np.array([[3.0, 0.0]], "f4"), B: np.array([[1.0], [0.0]], "f4")}
    large = {
        A: np.array([[0.0, 6.0], [0.0, 0.0]], "f4"),
        B: np.array([[0.0, 5.0], [1.0, 5.0]], "f4"),
    }
    method = METHODS["hetlora"]
    updates = [
        WeightedUpdate(
            arrays=arrays, indices=method.draw(spec, k, Turn(seed=0, task_seed=0)), weight=1.0
        )
        for k, arrays in ((1, small), (2, large))
    ]
    after = method.fold(spec, model, updates, np.random.default_rng(0))
    np.testing.assert_allclose(after.adapter[A], [[1.0, 4.0], [0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(after.adapter[B], [[1 / 3, 10 / 3], [2 / 3, 10 / 3]], rtol=1e-6)


def test_hetlora_starves_the_ranks_that_few_devices_have():
    """What padding does: a rank that one of four devices trains is averaged with three zeros."""
    _, spec, model, updates, after = played("hetlora", ks=[1, 1, 1, 6])
    name = f"{spec.adapter.layers[0].name}.lora_A"
    kept = (
        cut_slice(model.adapter, spec.adapter, updates[3].indices)[name] + updates[3].arrays[name]
    )
    assert (
        np.linalg.norm(after.adapter[name][1:], axis=1) < np.linalg.norm(kept[1:], axis=1)
    ).all()


@pytest.mark.parametrize("name", ["fslora", "fslora-alternating", "hetlora"])
def test_methods_of_unequal_ranks_are_fedit_where_all_ranks_are_trained(name):
    """With equal norms for HetLoRA, which weighs by them; round by round for turns."""
    method, spec = METHODS[name], spec_of()
    model = started(spec, np.random.default_rng(0))
    updates = updates_of(method, spec, model, [R] * 3, np.random.default_rng(5))
    if name == "hetlora":
        updates = [updates[0]] * 3
    after = method.fold(spec, model, updates, np.random.default_rng(0))
    plain = METHODS["fedit"].fold(spec, model, updates, np.random.default_rng(0))
    assert list(after.adapter) == list(plain.adapter)
    for tensor, array in after.adapter.items():
        np.testing.assert_allclose(array, plain.adapter[tensor], atol=1e-6)
    assert method.scaling(spec.adapter, R) == METHODS["fedit"].scaling(spec.adapter, R)


@pytest.mark.parametrize("name", ["flexlora", "fedex-lora", "flora"])
def test_exact_methods_deploy_what_fedit_does_when_all_devices_agree(name):
    method, spec = METHODS[name], spec_of()
    model = started(spec, np.random.default_rng(0))
    one = updates_of(METHODS["fedit"], spec, model, [R], np.random.default_rng(5))[0]
    after = method.fold(spec, model, [one] * 3, np.random.default_rng(0))
    plain = METHODS["fedit"].fold(spec, model, [one] * 3, np.random.default_rng(0))
    scale = METHODS["fedit"].scaling(spec.adapter, R)
    for layer in spec.adapter.layers:
        found, wanted = (
            scale
            * x.adapter[f"{layer.name}.lora_B"].astype(np.float64)
            @ x.adapter[f"{layer.name}.lora_A"]
            for x in (after, plain)
        )
        np.testing.assert_allclose(
            found + after.base_change.get(layer.name, 0.0), wanted, atol=1e-5
        )


@pytest.mark.parametrize("name", METHODS)
def test_dense_parameters_are_averaged_by_weight(name):
    _, _, model, updates, after = played(name, weights=[1.0, 2.0, 5.0], weighting="examples")
    moved = np.average([x.arrays["head.weight"] for x in updates], axis=0, weights=[1, 2, 5])
    if name == "hetlora":
        assert (after.adapter["head.weight"] != model.adapter["head.weight"]).all()
    else:
        np.testing.assert_allclose(
            after.adapter["head.weight"], model.adapter["head.weight"] + moved, atol=1e-6
        )


@pytest.mark.parametrize("name", ["ffa-lora", "rolora", "fslora-alternating"])
def test_a_factor_whose_turn_it_is_not_stays_bit_identical(name):
    _, spec, model, _, after = played(name)
    for layer in spec.adapter.layers:
        frozen, live = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        np.testing.assert_array_equal(after.adapter[frozen], model.adapter[frozen])
        assert (after.adapter[live] != model.adapter[live]).any()


@pytest.mark.parametrize("name", METHODS)
def test_a_round_without_updates_has_no_result(name):
    spec = spec_of()
    model = started(spec, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no updates"):
        METHODS[name].fold(spec, model, [], np.random.default_rng(0))


def test_a_frozen_factor_halves_what_is_sent_and_what_adam_holds():
    spec = spec_of()
    both, one = METHODS["rolora"], METHODS["fedit"]
    A, B = (factor_numbers(spec.adapter, x, R) for x in "AB")
    assert factor_numbers(spec.adapter, "AB", R) == A + B
    assert adapter_memory_bytes(one, spec, R, 1) == 16 * (A + B)
    assert adapter_memory_bytes(both, spec, R, 1) == 16 * B + 4 * A
    assert adapter_memory_bytes(both, spec, R, 2) == 16 * A + 4 * B


def test_what_is_folded_into_the_base_is_fetched_as_factors_or_whole_if_that_is_less():
    spec = spec_of()
    model = started(spec, np.random.default_rng(0))
    method = METHODS["fedex-lora"]
    own = downlink_bytes(method, spec, model, R)
    layers = spec.adapter.layers
    thin = downlink_bytes(method, spec, replace(model, change_rank=1), R)
    assert thin - own == 4 * sum(x.d_in + x.d_out for x in layers)
    whole = downlink_bytes(method, spec, replace(model, change_rank=1000), R)
    assert whole - own == 4 * sum(x.d_in * x.d_out for x in layers)


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"'fedavg' is none of fslora, .*flora"):
        method_of("fedavg")


def test_a_device_that_freezes_the_rest_starts_from_the_deployed_model():
    """No sketch, however small, changes what it computes with before it learns."""
    method, spec = METHODS["fslora-whole"], spec_of()
    model = started(spec, np.random.default_rng(0))
    for k in (1, 3, R):
        indices = method.draw(spec, k, Turn(seed=4, task_seed=4))
        rest, own = rest_of(spec, model, indices), cut_slice(model.adapter, spec.adapter, indices)
        scale = method.scaling(spec.adapter, k)
        for layer in spec.adapter.layers:
            B, A = (own[f"{layer.name}.lora_{x}"].astype(np.float64) for x in "BA")
            whole_B, whole_A = (
                model.adapter[f"{layer.name}.lora_{x}"].astype(np.float64) for x in "BA"
            )
            np.testing.assert_allclose(
                rest[layer.name] + scale * B @ A, scale * whole_B @ whole_A, atol=1e-5
            )
    assert downlink_bytes(method, spec, model, 1) == downlink_bytes(method, spec, model, R)
