"""Server and devices against a dense, independent NumPy reference in float64.

The reference never slices: it holds A and B at full rank, puts the r x r sketch matrix between
them, differentiates by hand, and averages full-shape updates. The product cuts, sends, trains
and scatters slices over real HTTP. Both must come to the same adapter.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from edge_sdk.general.base_model import LoadedBase
from edge_sdk.sketch import derive_seed, draw_sketch
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import train_round
from edge_sdk.wire.payload import adapter_shapes, decode
from edge_sdk.wire.task import (
    AdapterSpec,
    AggregationSpec,
    BaseModel,
    LayerSpec,
    RoundPolicy,
    TaskSpec,
    TrainingSpec,
)
from tests.numpy_device import NumpyDevice, enrol_one
from tests.processes import ServerProcess
from tests.server.tasks import Site

VOCABULARY, D0, D1, D2 = 23, 12, 10, 14
R, ALPHA = 6, 9.0
SKETCH_SIZES = (1, 2, 4, 6)
ROUNDS, LOCAL_STEPS, LOCAL_LR, SERVER_LR = 5, 3, 2e-2, 0.7
TASK_SEED = 41
LAYERS = [
    LayerSpec(name="first", d_in=D0, d_out=D1),
    LayerSpec(name="second", d_in=D1, d_out=D2),
]
BASE = BaseModel(model="bigram", digest="0" * 64)


class Bigram(nn.Module):
    """Two tanh layers between an embedding and a head; predicts each token from the last one."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.tensor(weights["embedding"]))
        self.first = _linear(weights["first"])
        self.second = _linear(weights["second"])
        self.head = _linear(weights["head"])
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, input_ids, attention_mask):
        hidden = torch.tanh(self.first(self.embedding(input_ids)))
        return SimpleNamespace(logits=self.head(torch.tanh(self.second(hidden))))


@pytest.mark.processes
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_server_and_devices_agree_with_a_dense_float64_reference(tmp_path: Path, optimizer):
    weights = _weights()
    task = _task(optimizer)
    data = {k: _sentences(seed=k) for k in SKETCH_SIZES}
    site = Site(tmp_path / "state")
    site.add_task(task, seed=TASK_SEED)
    site.store.close()
    base = LoadedBase(
        model=Bigram(weights),
        tokenizer=SimpleNamespace(pad_token_id=0),
        spec=BASE,
        quantization="fp32",
        compute_dtype=torch.float64,
    )
    with ServerProcess(tmp_path / "state") as server:
        secret = server.command("token", "create")["enrolment_token"]
        devices, ids = [], []
        for k in SKETCH_SIZES:
            identity = enrol_one(server.address, secret, f"k{k}")
            devices.append(NumpyDevice(server.address, identity, task.name, k))
            ids.append(identity.device_id)
        versions = [_adapter(devices[0], task, 0)]
        for number in range(1, ROUNDS + 1):
            work = [device.wait_for_work() for device in devices]
            assert [x.round_number for x in work] == [number] * len(work)
            for device, assignment in zip(devices, work, strict=True):
                slices = device.fetch(assignment)
                result = train_round(
                    base,
                    task.adapter,
                    assignment.k,
                    {name: array.astype(np.float64) for name, array in slices.items()},
                    assignment.training,
                    _examples(data[assignment.k]),
                    assignment.seed,
                )
                device.submit(assignment, device.body_of(result.update))
            devices[0].wait_for_version(number)
            versions.append(_adapter(devices[0], task, number))

    reference = {name: array.astype(np.float64) for name, array in versions[0].items()}
    for number in range(1, ROUNDS + 1):
        reference = _reference_round(reference, number, ids, weights, data, optimizer)
        for name, array in versions[number].items():
            np.testing.assert_allclose(array, reference[name], atol=1e-6, rtol=0)
    moved = max(np.abs(reference[name] - versions[0][name]).max() for name in reference)
    assert moved > 1e-2, "training moved the adapter far more than the tolerance"


def _reference_round(adapter, number, device_ids, weights, data, optimizer):
    total = {name: np.zeros_like(array) for name, array in adapter.items()}
    for k, device_id in zip(SKETCH_SIZES, device_ids, strict=True):
        seed = derive_seed(TASK_SEED, number, device_id)
        sketches = [_sketch_matrix(x, k) for x in draw_sketch(seed, R, k, len(LAYERS))]
        after = _reference_training(adapter, sketches, weights, data[k], optimizer)
        for name in total:
            total[name] += (after[name] - adapter[name]) / len(SKETCH_SIZES)
    return {name: adapter[name] + SERVER_LR * total[name] for name in adapter}


def _sketch_matrix(indices, k):
    S = np.zeros((R, R))
    S[indices, indices] = R / k
    return S


def _reference_training(adapter, sketches, weights, sentences, optimizer):
    x = {name: array.copy() for name, array in adapter.items()}
    first_moment = {name: np.zeros_like(array) for name, array in x.items()}
    second_moment = {name: np.zeros_like(array) for name, array in x.items()}
    for step in range(1, LOCAL_STEPS + 1):
        gradients = _gradients(x, sketches, weights, sentences)
        for name, g in gradients.items():
            if optimizer == "sgd":
                x[name] -= LOCAL_LR * g
                continue
            first_moment[name] = 0.9 * first_moment[name] + 0.1 * g
            second_moment[name] = 0.999 * second_moment[name] + 0.001 * g * g
            mean = first_moment[name] / (1 - 0.9**step)
            scale = np.sqrt(second_moment[name] / (1 - 0.999**step)) + 1e-8
            x[name] -= LOCAL_LR * mean / scale
    return x


def _gradients(x, sketches, weights, sentences):
    """Forward and backward by hand, at full rank, with S between B and A."""
    scaling = ALPHA / R
    tokens = np.concatenate([sentence[:-1] for sentence in sentences])
    targets = np.concatenate([sentence[1:] for sentence in sentences])
    effective = [
        weights[layer.name] + scaling * x[f"{layer.name}.lora_B"] @ S @ x[f"{layer.name}.lora_A"]
        for layer, S in zip(LAYERS, sketches, strict=True)
    ]
    inputs = [weights["embedding"][tokens]]
    for W in effective:
        inputs.append(np.tanh(inputs[-1] @ W.T))
    logits = inputs[-1] @ weights["head"].T
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    probabilities[np.arange(len(targets)), targets] -= 1
    flowing = (probabilities / len(targets)) @ weights["head"]
    gradients = {}
    for i in (1, 0):
        flowing = flowing * (1 - inputs[i + 1] ** 2)
        dW = flowing.T @ inputs[i]
        name, S = LAYERS[i].name, sketches[i]
        gradients[f"{name}.lora_B"] = scaling * dW @ (S @ x[f"{name}.lora_A"]).T
        gradients[f"{name}.lora_A"] = scaling * (x[f"{name}.lora_B"] @ S).T @ dW
        flowing = flowing @ effective[i]
    return gradients


def _task(optimizer) -> TaskSpec:
    return TaskSpec(
        name="bigram",
        base=BASE,
        adapter=AdapterSpec(
            r=R, lora_alpha=ALPHA, target_modules=["first", "second"], layers=LAYERS
        ),
        training=TrainingSpec(
            local_steps=LOCAL_STEPS, local_lr=LOCAL_LR, optimizer=optimizer, batch_size=100
        ),
        policy=RoundPolicy(
            rounds=ROUNDS,
            cohort_size=len(SKETCH_SIZES),
            quorum=len(SKETCH_SIZES),
            sketch_sizes=list(SKETCH_SIZES),
        ),
        aggregation=AggregationSpec(server_lr=SERVER_LR),
    )


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {
        "embedding": (VOCABULARY, D0),
        "first": (D1, D0),
        "second": (D2, D1),
        "head": (VOCABULARY, D2),
    }
    return {name: rng.normal(scale=0.5, size=shape) for name, shape in shapes.items()}


def _sentences(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, size=rng.integers(4, 9)) for _ in range(5)]


def _examples(sentences) -> list[Example]:
    return [
        Example([int(token) for token in sentence], [False] + [True] * (len(sentence) - 1))
        for sentence in sentences
    ]


def _adapter(device: NumpyDevice, task: TaskSpec, version: int):
    digest = device.transport.adapters(task.name)[version].digest
    body = device.transport.adapter_body(task, version, digest)
    return decode(body, adapter_shapes(task.adapter, R))[0]


def _linear(weight: np.ndarray) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(torch.tensor(weight))
    return layer
