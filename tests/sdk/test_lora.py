"""Sketched layers on a model, and off again."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edge_sdk.errors import AdapterError
from edge_sdk.general.base_model import load_base
from edge_sdk.general.lora import SketchedLinear, attach
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import train_round
from edge_sdk.wire.task import AdapterSpec, DenseSpec, LayerSpec, TrainingSpec
from tests.sdk.parts import adapter_spec, causal_spec, classifier_spec, random_arrays

IDS = torch.tensor([[3, 7, 11, 4], [9, 8, 20, 21]])


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_low_rank_branch_is_the_product_of_its_factors():
    torch.manual_seed(0)
    base, x = nn.Linear(6, 5).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    B, A = torch.randn(5, 2, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    layer = SketchedLinear(base, B, A, scale=0.7)
    expected = x @ (base.weight + 0.7 * B @ A).T + base.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=1e-12)


def test_gradients_reach_the_factors_and_the_input_but_not_the_base():
    torch.manual_seed(0)
    layer = SketchedLinear(nn.Linear(6, 5), torch.randn(5, 2), torch.randn(2, 6), scale=0.7)
    x = torch.randn(3, 6, requires_grad=True)
    layer(x).sum().backward()
    ones = torch.ones(3, 5)
    torch.testing.assert_close(layer.lora_B.grad, 0.7 * ones.T @ (x @ layer.lora_A.T))
    torch.testing.assert_close(layer.lora_A.grad, 0.7 * (ones @ layer.lora_B).T @ x)
    torch.testing.assert_close(
        x.grad, ones @ (layer.base.weight + 0.7 * layer.lora_B @ layer.lora_A)
    )
    assert all(parameter.grad is None for parameter in layer.base.parameters())


def test_a_base_that_computes_in_bf16_keeps_fp32_masters_and_bf16_activations():
    torch.manual_seed(0)
    B, A, x = torch.randn(5, 2), torch.randn(2, 6), torch.randn(3, 6)
    layer = SketchedLinear(nn.Linear(6, 5), B, A, scale=0.7)
    exact = layer(x).detach()
    layer.base.bfloat16()
    y = layer(x.bfloat16())
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.lora_A.dtype == layer.lora_A.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), exact, atol=0.05, rtol=0.02)


def test_attached_ranks_act_as_the_merged_weight(loaded_llama, tiny_llama):
    adapter = adapter_spec(tiny_llama, causal_spec())
    arrays, scale = random_arrays(adapter, k=3), 1.7
    attached = attach(loaded_llama.model, adapter, arrays, scale)
    with_adapter = logits(loaded_llama.model)
    attached.detach()
    before = state(loaded_llama.model)
    with torch.no_grad():
        for layer in adapter.layers:
            A, B = (torch.tensor(arrays[f"{layer.name}.lora_{x}"]) for x in "AB")
            loaded_llama.model.get_parameter(f"{layer.name}.weight").add_(scale * B @ A)
    merged = logits(loaded_llama.model)
    loaded_llama.model.load_state_dict(before)
    torch.testing.assert_close(with_adapter, merged, atol=2e-5, rtol=1e-4)
    assert (with_adapter - logits(loaded_llama.model)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_detaching_restores_the_model_bit_for_bit_and_twice_is_once(request, kind):
    folder, base = (
        request.getfixturevalue(f"tiny_{kind}"),
        request.getfixturevalue(f"loaded_{kind}"),
    )
    adapter = adapter_spec(folder, base.spec)
    before, before_logits = state(base.model), logits(base.model)
    modules, parameters = list(base.model.modules()), list(base.model.parameters())
    attached = attach(base.model, adapter, random_arrays(adapter, k=2), 1.0)
    assert not torch.equal(logits(base.model), before_logits)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.add_(1.0)
    attached.detach()
    attached.detach()
    after = state(base.model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(a is b for a, b in zip(base.model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(base.model.parameters(), parameters, strict=True))
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert torch.equal(logits(base.model), before_logits)


def test_arrays_are_copies_under_the_names_and_order_of_the_wire(loaded_bert, tiny_bert):
    adapter = adapter_spec(tiny_bert, classifier_spec())
    given = random_arrays(adapter, k=2)
    attached = attach(loaded_bert.model, adapter, given, 1.0)
    out = attached.arrays()
    attached.detach()
    assert list(out) == list(given)
    for name in given:
        np.testing.assert_array_equal(out[name], given[name])
        assert out[name].dtype == np.float32
    out["classifier.weight"][:] = 7.0
    assert not np.shares_memory(out["classifier.weight"], given["classifier.weight"])
    assert attached.arrays()["classifier.weight"].max() < 1.0


def test_only_what_is_attached_is_trained(loaded_bert, tiny_bert):
    adapter = adapter_spec(tiny_bert, classifier_spec())
    attached = attach(loaded_bert.model, adapter, random_arrays(adapter, k=2), 1.0)
    trained = {id(p) for p in loaded_bert.model.parameters() if p.requires_grad}
    loaded_bert.model(input_ids=IDS).logits.sum().backward()
    gradients = {id(p) for p in loaded_bert.model.parameters() if p.grad is not None}
    attached.detach()
    assert trained == gradients == {id(p) for p in attached.parameters()}


def test_only_the_targets_to_train_get_gradients_and_all_get_values(loaded_llama, tiny_llama):
    adapter = adapter_spec(tiny_llama, causal_spec())
    given = random_arrays(adapter, k=2)
    attached = attach(loaded_llama.model, adapter, given, 1.0, trained_targets={"v_proj"})
    loaded_llama.model(input_ids=IDS).logits.sum().backward()
    gradients = [p for p in loaded_llama.model.parameters() if p.grad is not None]
    attached.detach()
    trained = [layer for layer in adapter.layers if layer.ending == "v_proj"]
    assert len(gradients) == len(attached.parameters()) == 2 * len(trained)
    assert {id(p) for p in gradients} == {id(p) for p in attached.parameters()}
    assert attached.arrays().keys() == given.keys()


def test_a_dense_head_on_a_bf16_base_is_trained_in_fp32(tiny_bert):
    base = load_base(tiny_bert, classifier_spec(), "fp32", threads=1)
    adapter = adapter_spec(tiny_bert, classifier_spec())
    arrays = random_arrays(adapter, k=2)
    attached = attach(base.model, adapter, arrays, 1.0)
    exact = logits(base.model)
    attached.detach()
    base.model.to(torch.bfloat16)
    attached = attach(base.model, adapter, arrays, 1.0)
    rounded = base.model(input_ids=IDS).logits
    rounded.sum().backward()
    assert {p.dtype for p in attached.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in attached.parameters()} == {torch.float32}
    attached.detach()
    assert base.model(input_ids=IDS).logits.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


def test_a_bias_of_an_adapted_layer_can_be_dense(loaded_bert, tiny_bert):
    layer = adapter_spec(tiny_bert, classifier_spec()).layers[0]
    bias = DenseSpec(name=f"{layer.name}.bias", shape=[layer.d_out])
    adapter = AdapterSpec(r=2, lora_alpha=4, target_modules=["query"], layers=[layer], dense=[bias])
    before = logits(loaded_bert.model)
    attached = attach(loaded_bert.model, adapter, random_arrays(adapter, k=1, size=1.0), 1.0)
    assert not torch.equal(logits(loaded_bert.model), before)
    loaded_bert.model(input_ids=IDS).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in attached.parameters())
    attached.detach()
    assert torch.equal(logits(loaded_bert.model), before)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda arrays, name: arrays.pop(name), "is missing"),
        (lambda arrays, name: arrays.update(extra=np.zeros(1)), "'extra' is not part of it"),
        (lambda arrays, name: arrays.update({name: arrays[name][:, :1]}), r"has shape \(32, 1\)"),
    ],
)
def test_arrays_that_are_not_the_adapters_are_refused_and_change_nothing(
    loaded_llama, tiny_llama, spoil, text
):
    adapter = adapter_spec(tiny_llama, causal_spec())
    arrays = random_arrays(adapter, k=2)
    spoil(arrays, f"{adapter.layers[-1].name}.lora_B")
    modules = list(loaded_llama.model.modules())
    with pytest.raises(AdapterError, match=text):
        attach(loaded_llama.model, adapter, arrays, 1.0)
    assert list(loaded_llama.model.modules()) == modules


def test_an_adapter_of_another_model_is_refused_and_changes_nothing(loaded_llama, tiny_llama):
    good = adapter_spec(tiny_llama, causal_spec())
    adapter = AdapterSpec(
        r=2,
        lora_alpha=4,
        target_modules=["q_proj"],
        layers=[*good.layers, LayerSpec(name="model.layers.9.self_attn.q_proj", d_in=8, d_out=8)],
    )
    modules = list(loaded_llama.model.modules())
    with pytest.raises(AdapterError, match="does not fit this model"):
        attach(loaded_llama.model, adapter, random_arrays(adapter, k=2), 1.0)
    assert list(loaded_llama.model.modules()) == modules


class ShapeRecorder(TorchDispatchMode):
    """Notes the shape of everything torch computes, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, result)):
            if isinstance(x, torch.Tensor):
                self.shapes.add(tuple(x.shape))
        return result


def live_shapes() -> list[tuple[int, ...]]:
    # by type: isinstance would touch deprecated objects elsewhere in torch
    return [tuple(x.shape) for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]


def test_no_tensor_of_the_global_rank_is_ever_held_on_a_device(loaded_llama, tiny_llama):
    """Adapter, activations, gradients, optimizer moments: none has a side of length r."""
    r, k = 13, 3  # 13 and 3 are no sizes of the tiny models, the data or the batches
    adapter = adapter_spec(tiny_llama, causal_spec(), r=r)
    layer = adapter.layers[0]
    alive: list[tuple[int, ...]] = []
    example = Example(tokens=[3, 7, 9, 11, 5], is_learned=[False, True, True, True, True])
    with ShapeRecorder() as computed:
        train_round(
            loaded_llama,
            adapter,
            k,
            random_arrays(adapter, k),
            TrainingSpec(local_steps=3, batch_size=2),
            [example, example],
            seed=0,
            on_step=lambda step, loss: alive.extend(live_shapes()),
        )
    # parameter, gradient and two moments of at least one A, at each of the three steps
    assert alive.count((k, layer.d_in)) >= 3 * 4
    assert {(k, layer.d_in), (layer.d_out, k), (2, 5, k)} <= computed.shapes
    assert not [shape for shape in {*alive, *computed.shapes} if r in shape]
