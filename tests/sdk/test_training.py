"""Local training: equal to plain LoRA at full rank, to the masked problem below it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from edge_sdk.errors import (
    AdapterError,
    LossDiverged,
    OutOfMemory,
    TrainingError,
    WrongBaseModel,
)
from edge_sdk.general.base_model import LoadedBase, load_base
from edge_sdk.general.evaluation import classification_accuracy, completion_loss
from edge_sdk.sketch import draw_sketch, scatter_add
from edge_sdk.text.batches import Batch, collate
from edge_sdk.text.data import load_examples
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import train_round
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec, TrainingSpec
from tests.sdk.parts import (
    QUESTIONS,
    TEXTS,
    adapter_spec,
    causal_spec,
    classifier_spec,
    cut,
    random_arrays,
)
from tests.tiny_model import write_jsonl

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT, with transformers 5
)

EXACT = {"rtol": 1e-6, "atol": 1e-9}
"""In float64; the model's norms and rotations still round to fp32, the same way on both sides."""


@pytest.fixture(scope="module")
def questions(tmp_path_factory, loaded_llama) -> list[Example]:
    path = write_jsonl(tmp_path_factory.mktemp("data") / "questions.jsonl", QUESTIONS)
    return load_examples(path, loaded_llama.tokenizer, loaded_llama.spec, max_length=32)


@pytest.fixture(scope="module")
def double_llama(tiny_llama) -> LoadedBase:
    """In float64, so that two ways to compute the same thing agree to many digits."""
    base = load_base(tiny_llama, causal_spec(), "fp32", threads=1)
    base.model.double()
    return base


def double(arrays: Arrays) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def whole_batch(examples: list[Example], **settings: object) -> TrainingSpec:
    """Every step sees every example, so that their order does not matter."""
    return replace(TrainingSpec(local_lr=1e-2, batch_size=len(examples)), **settings)


class PeftDevice:
    """The reference: PEFT and plain PyTorch, none of our code."""

    def __init__(self, folder: Path, adapter: AdapterSpec) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder).double()
        config = peft.LoraConfig(
            r=adapter.r,
            lora_alpha=adapter.lora_alpha,
            use_rslora=adapter.use_rslora,
            target_modules=adapter.target_modules,
            task_type="CAUSAL_LM",
        )
        self.model = peft.get_peft_model(model, config).eval()
        self.factors = {
            name.removeprefix("base_model.model.").removesuffix(".default.weight"): parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        assert arrays.keys() == self.factors.keys()
        with torch.no_grad():
            for name, parameter in self.factors.items():
                parameter.copy_(torch.from_numpy(arrays[name]))

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: x.detach().numpy().copy() for name, x in self.factors.items()}

    def train(self, optimizer: torch.optim.Optimizer, batch: Batch, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            out = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            loss = functional.cross_entropy(
                out.logits[:, :-1].flatten(0, 1), batch.targets[:, 1:].flatten()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses


@pytest.mark.parametrize("use_rslora", [False, True])
def test_full_rank_training_is_plain_lora_in_peft(double_llama, tiny_llama, questions, use_rslora):
    adapter = adapter_spec(tiny_llama, causal_spec(), use_rslora=use_rslora)
    before = double(random_arrays(adapter, adapter.r))
    training = whole_batch(questions, local_steps=5, weight_decay=0.1)
    result = train_round(double_llama, adapter, adapter.r, before, training, questions, seed=1)
    device = PeftDevice(tiny_llama, adapter)
    device.load(before)
    optimizer = torch.optim.AdamW(device.factors.values(), lr=1e-2, weight_decay=0.1)
    losses = device.train(optimizer, collate(questions, 0), steps=5)
    np.testing.assert_allclose(result.losses, losses, **EXACT)
    for name, array in device.arrays().items():
        np.testing.assert_allclose(before[name] + result.update[name], array, **EXACT)
    assert losses[-1] < losses[0] - 0.1


def test_our_loss_is_the_loss_hugging_face_computes(loaded_llama, tiny_llama, questions):
    batch = collate(questions, 0)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    with torch.no_grad():
        out = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.targets
        )
    assert completion_loss(loaded_llama, questions) == pytest.approx(float(out.loss), rel=1e-5)


def test_rounds_at_full_rank_are_federated_averaging_of_lora(double_llama, tiny_llama, questions):
    """Three devices, three rounds: FedIT written in PEFT gives the same global adapter."""
    adapter = adapter_spec(tiny_llama, causal_spec(), targets=("q_proj", "down_proj"))
    shards = [questions[i::3] for i in range(3)]
    ours = theirs = double(random_arrays(adapter, adapter.r))
    device = PeftDevice(tiny_llama, adapter)
    for number in range(3):
        ours = {name: array.copy() for name, array in ours.items()}
        start = {name: array.copy() for name, array in ours.items()}
        trained = []
        for shard in shards:
            training = whole_batch(shard, local_steps=2)
            update = train_round(
                double_llama, adapter, adapter.r, start, training, shard, seed=number
            ).update
            for layer in adapter.layers:
                A, B = (f"{layer.name}.lora_{x}" for x in "AB")
                every = np.arange(adapter.r)
                scatter_add(ours[B], ours[A], update[B], update[A], every, weight=1 / 3)
            device.load(theirs)
            optimizer = torch.optim.AdamW(device.factors.values(), lr=1e-2, weight_decay=0.0)
            device.train(optimizer, collate(shard, 0), steps=2)
            trained.append(device.arrays())
        theirs = {name: sum(x[name] for x in trained) / 3 for name in theirs}
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, **EXACT)


class MaskedLinear(nn.Module):
    """The method as written: all r ranks as parameters, S inserted between them."""

    def __init__(self, base: nn.Module, B, A, diagonal, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.B, self.A = nn.Parameter(torch.from_numpy(B)), nn.Parameter(torch.from_numpy(A))
        self.S = torch.diag(torch.from_numpy(diagonal))

    def forward(self, x):
        return self.base(x) + self.scaling * x @ (self.B @ self.S @ self.A).T


def masked_training(
    folder: Path, adapter: AdapterSpec, whole: dict, sketch: list, batch: Batch, optimizer, steps
) -> dict[str, np.ndarray]:
    """Train the full-shape problem and return all r ranks."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval().requires_grad_(False)
    layers: dict[str, MaskedLinear] = {}
    root = np.sqrt(adapter.r) if adapter.use_rslora else adapter.r
    for layer, indices in zip(adapter.layers, sketch, strict=True):
        diagonal = np.zeros(adapter.r)
        diagonal[indices] = adapter.r / len(indices)
        owner, _, child = layer.name.rpartition(".")
        masked = MaskedLinear(
            model.get_submodule(layer.name),
            whole[f"{layer.name}.lora_B"].copy(),
            whole[f"{layer.name}.lora_A"].copy(),
            diagonal,
            adapter.lora_alpha / root,
        )
        setattr(model.get_submodule(owner), child, masked)
        layers[layer.name] = masked
    optimizer = optimizer([x for layer in layers.values() for x in (layer.A, layer.B)])
    for _ in range(steps):
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        optimizer.zero_grad()
        functional.cross_entropy(
            out.logits[:, :-1].flatten(0, 1), batch.targets[:, 1:].flatten()
        ).backward()
        optimizer.step()
    arrays = {}
    for name, layer in layers.items():
        arrays[f"{name}.lora_A"] = layer.A.detach().numpy()
        arrays[f"{name}.lora_B"] = layer.B.detach().numpy()
    return arrays


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_the_slices_is_training_the_masked_whole(
    double_llama, tiny_llama, questions, optimizer, use_rslora
):
    k, lr, steps = 3, 1e-2 if optimizer == "adamw" else 0.3, 4
    adapter = adapter_spec(tiny_llama, causal_spec(), use_rslora=use_rslora)
    whole = double(random_arrays(adapter, adapter.r))
    sketch = draw_sketch(5, adapter.r, k, len(adapter.layers))
    training = whole_batch(questions, local_steps=steps, optimizer=optimizer, local_lr=lr)
    slices = cut(adapter, whole, sketch)
    result = train_round(double_llama, adapter, k, slices, training, questions, seed=0)

    def reference_optimizer(parameters) -> torch.optim.Optimizer:
        if optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=lr)
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)

    trained = masked_training(
        tiny_llama, adapter, whole, sketch, collate(questions, 0), reference_optimizer, steps
    )
    inside = cut(adapter, trained, sketch)
    for layer, indices in zip(adapter.layers, sketch, strict=True):
        A, B = (f"{layer.name}.lora_{x}" for x in "AB")
        for name in (A, B):
            np.testing.assert_allclose(slices[name] + result.update[name], inside[name], **EXACT)
            assert np.abs(result.update[name]).max() > 1e-4
        outside = np.setdiff1d(np.arange(adapter.r), indices)
        np.testing.assert_array_equal(trained[A][outside], whole[A][outside])
        np.testing.assert_array_equal(trained[B][:, outside], whole[B][:, outside])


@pytest.mark.parametrize("quantization", ["nf4", "bf16"])
def test_a_narrow_base_trains_through_the_same_path_and_stays_bit_identical(
    tiny_llama, questions, quantization
):
    base = load_base(tiny_llama, causal_spec(), quantization, threads=1)
    adapter = adapter_spec(tiny_llama, causal_spec())
    before = {name: x.clone() for name, x in base.model.state_dict().items()}
    slices = random_arrays(adapter, k=4)
    training = whole_batch(questions, local_steps=25)
    first = train_round(base, adapter, 4, slices, training, questions, seed=0)
    assert first.losses[-1] < first.losses[0] - 0.2
    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    again = train_round(base, adapter, 4, slices, training, questions, seed=0)
    assert again.losses == first.losses


@pytest.mark.parametrize(
    ("quantization", "computes_in_bf16", "least"),
    [("bf16", False, 0.9999), ("bf16", True, 0.9995), ("nf4", False, 0.97), ("nf4", True, 0.97)],
)
def test_the_narrow_base_gives_nearly_the_gradient_of_the_wide_one(
    loaded_llama, tiny_llama, questions, quantization, computes_in_bf16, least
):
    """One SGD step: the update is the gradient, on a CPU with and without bf16 units."""
    adapter = adapter_spec(tiny_llama, causal_spec())
    slices = random_arrays(adapter, k=4)
    training = whole_batch(questions, local_steps=1, optimizer="sgd", local_lr=1.0)

    def direction(base: LoadedBase) -> np.ndarray:
        update = train_round(base, adapter, 4, slices, training, questions, seed=0).update
        flat = np.concatenate([x.ravel() for x in update.values()])
        return flat / np.linalg.norm(flat)

    base = load_base(
        tiny_llama, causal_spec(), quantization, threads=1, computes_in_bf16=computes_in_bf16
    )
    assert direction(base) @ direction(loaded_llama) > least


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_order(
    loaded_llama, tiny_llama, questions
):
    adapter = adapter_spec(tiny_llama, causal_spec())
    slices = random_arrays(adapter, k=2)
    training = TrainingSpec(local_steps=4, batch_size=2)
    runs = [
        train_round(loaded_llama, adapter, 2, slices, training, questions, seed)
        for seed in (3, 3, 4)
    ]
    assert runs[0].losses == runs[1].losses
    assert all(np.array_equal(runs[0].update[x], runs[1].update[x]) for x in slices)
    assert runs[0].losses != runs[2].losses


def test_every_pass_over_the_data_sees_every_example_once(loaded_llama, tiny_llama, questions):
    """At a vanishing step size a step's loss tells which example it saw."""
    adapter = adapter_spec(tiny_llama, causal_spec())
    zeros = {name: 0 * array for name, array in random_arrays(adapter, k=2).items()}
    count = len(questions)
    training = TrainingSpec(local_steps=2 * count, batch_size=1, optimizer="sgd", local_lr=1e-30)
    losses = train_round(loaded_llama, adapter, 2, zeros, training, questions, seed=0).losses
    expected = sorted(completion_loss(loaded_llama, [example]) for example in questions)
    assert len(set(expected)) == count
    assert sorted(losses[:count]) == pytest.approx(expected, abs=1e-5)
    assert sorted(losses[count:]) == pytest.approx(expected, abs=1e-5)
    assert losses[:count] != losses[count:]


def test_a_device_with_fewer_examples_than_a_batch_trains_on_all_it_has(
    loaded_llama, tiny_llama, questions
):
    adapter = adapter_spec(tiny_llama, causal_spec())
    zeros = {name: 0 * array for name, array in random_arrays(adapter, k=2).items()}
    training = TrainingSpec(local_steps=1, batch_size=8)
    few = questions[:5]
    result = train_round(loaded_llama, adapter, 2, zeros, training, few, seed=0)
    assert result.loss == pytest.approx(completion_loss(loaded_llama, few), rel=1e-5)


def test_every_step_is_reported_and_the_loss_is_their_mean(loaded_llama, tiny_llama, questions):
    adapter = adapter_spec(tiny_llama, causal_spec())
    steps: list[tuple[int, float]] = []
    result = train_round(
        loaded_llama,
        adapter,
        1,
        random_arrays(adapter, k=1),
        TrainingSpec(local_steps=3),
        questions,
        seed=0,
        on_step=lambda step, loss: steps.append((step, loss)),
    )
    assert steps == list(enumerate(result.losses, start=1))
    assert result.loss == pytest.approx(np.mean(result.losses))
    assert 0 < result.seconds < 60
    assert {x.dtype for x in result.update.values()} == {np.dtype(np.float32)}


def test_a_classifier_trains_its_head_and_its_ranks(loaded_bert, tiny_bert, tmp_path):
    path = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    examples = load_examples(path, loaded_bert.tokenizer, classifier_spec(), max_length=32)
    adapter = adapter_spec(tiny_bert, classifier_spec())
    slices = random_arrays(adapter, k=4)
    training = whole_batch(examples, local_steps=40)
    result = train_round(loaded_bert, adapter, 4, slices, training, examples, seed=0)
    assert result.losses[-1] < 0.2 * result.losses[0]
    assert all(np.abs(array).max() > 0 for array in result.update.values())
    from edge_sdk.general.lora import attach
    from edge_sdk.sketch import sketched_scaling

    trained = {name: slices[name] + result.update[name] for name in slices}
    scale = sketched_scaling(adapter.lora_alpha, adapter.r, 4)
    attached = attach(loaded_bert.model, adapter, trained, scale)
    assert classification_accuracy(loaded_bert, examples) == 1.0
    attached.detach()


@pytest.fixture
def untouched(loaded_llama) -> Iterator[LoadedBase]:
    """A base that must have its own modules back, whatever happened."""
    modules = list(loaded_llama.model.modules())
    yield loaded_llama
    assert all(a is b for a, b in zip(loaded_llama.model.modules(), modules, strict=True))


def test_a_diverging_loss_says_the_step_and_leaves_the_base_alone(untouched, tiny_llama, questions):
    adapter = adapter_spec(tiny_llama, causal_spec())
    training = TrainingSpec(local_steps=5, local_lr=1e20)
    with pytest.raises(LossDiverged, match=r"local step 2 of 5: lower local_lr=1e\+20") as caught:
        train_round(untouched, adapter, 2, random_arrays(adapter, 2), training, questions, seed=0)
    assert caught.value.step == 2


def test_a_last_step_that_leaves_the_finite_numbers_is_not_sent(untouched, tiny_llama, questions):
    adapter = adapter_spec(tiny_llama, causal_spec())
    training = TrainingSpec(local_steps=1, local_lr=1e30, weight_decay=1e30)
    with pytest.raises(LossDiverged, match="the trained numbers are not finite") as caught:
        train_round(untouched, adapter, 2, random_arrays(adapter, 2), training, questions, seed=0)
    assert caught.value.step == 1


def allocate_in_numpy(step: int, loss: float) -> None:
    np.empty(1 << 60, dtype=np.uint8)


def allocate_in_torch(step: int, loss: float) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize("allocate", [allocate_in_numpy, allocate_in_torch])
def test_memory_that_runs_out_is_out_of_memory_that_says_what_was_tried(
    untouched, tiny_llama, questions, allocate
):
    adapter = adapter_spec(tiny_llama, causal_spec())
    slices, training = random_arrays(adapter, 2), TrainingSpec(batch_size=2, max_length=32)
    with pytest.raises(OutOfMemory, match="training 2 ranks on 2 examples at once"):
        train_round(untouched, adapter, 2, slices, training, questions, 0, on_step=allocate)


def test_any_other_failure_passes_through_and_leaves_the_base_alone(
    untouched, tiny_llama, questions
):
    def fail(step: int, loss: float) -> None:
        raise RuntimeError("the caller's own")

    adapter = adapter_spec(tiny_llama, causal_spec())
    slices = random_arrays(adapter, 2)
    with pytest.raises(RuntimeError, match="the caller's own"):
        train_round(untouched, adapter, 2, slices, TrainingSpec(), questions, 0, on_step=fail)


def test_work_that_does_not_fit_is_refused_before_the_first_step(untouched, tiny_llama, questions):
    adapter = adapter_spec(tiny_llama, causal_spec())
    slices, training = random_arrays(adapter, 2), TrainingSpec()
    with pytest.raises(AdapterError, match="with k=3 it is"):
        train_round(untouched, adapter, 3, slices, training, questions, seed=0)
    with pytest.raises(TrainingError, match="no example"):
        train_round(untouched, adapter, 2, slices, training, [], seed=0)
    other = replace(adapter, layers=[replace(adapter.layers[0], d_in=33), *adapter.layers[1:]])
    with pytest.raises(WrongBaseModel, match=r"\(33 -> 32\).*\(32 -> 32\)"):
        train_round(untouched, other, 2, slices, training, questions, seed=0)
