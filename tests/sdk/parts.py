"""What the tests of the training side share: specs and random adapters of the tiny models."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_sdk.model.model_folder import read_config
from edge_sdk.model.model_shape import read_shape
from edge_sdk.sketch import Indices
from edge_sdk.wire.payload import Arrays, adapter_shapes
from edge_sdk.wire.task import AdapterSpec, BaseModel, RoundPolicy, TaskSpec, TrainingSpec

LABELS = ["red", "green", "blue"]
QUESTIONS = [
    {"prompt": f"{ask} {verb} the {noun} ?", "completion": f" {answer} . {number}"}
    for ask, verb, noun, answer, number in [
        ("what", "is", "city", "red", "one"),
        ("who", "is", "person", "green", "two"),
        ("where", "are", "country", "blue", "three"),
        ("when", "was", "number", "yes", "four"),
        ("why", "is", "answer", "no", "five"),
        ("how", "many", "question", "six", "six"),
    ]
]
TEXTS = [
    {"text": record["prompt"] + " number" * i, "label": LABELS[i % 3]}
    for i, record in enumerate(QUESTIONS)
]


def causal_spec() -> BaseModel:
    return BaseModel(model="tiny", digest="0" * 64)


def classifier_spec() -> BaseModel:
    return BaseModel(model="tiny", digest="0" * 64, task_type="SEQ_CLS", labels=LABELS)


def adapter_spec(
    folder: Path,
    base: BaseModel,
    r: int = 8,
    lora_alpha: float = 16.0,
    use_rslora: bool = False,
    targets: tuple[str, ...] | None = None,
) -> AdapterSpec:
    shape = read_shape(read_config(folder), base.task_type, len(base.labels))
    targets = targets or shape.default_targets
    return AdapterSpec(
        r=r,
        lora_alpha=lora_alpha,
        use_rslora=use_rslora,
        target_modules=list(targets),
        layers=shape.target_layers(targets),
        dense=list(shape.dense),
    )


def random_arrays(adapter: AdapterSpec, k: int, seed: int = 0, size: float = 0.1) -> Arrays:
    """Every tensor of the adapter at rank ``k``, none of them zero."""
    rng = np.random.default_rng(seed)
    return {
        name: (size * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in adapter_shapes(adapter, k).items()
    }


def cut(adapter: AdapterSpec, arrays: Arrays, sketch: list[Indices]) -> Arrays:
    """The slice a server cuts for a device."""
    slices = dict(arrays)
    for layer, indices in zip(adapter.layers, sketch, strict=True):
        slices[f"{layer.name}.lora_A"] = arrays[f"{layer.name}.lora_A"][indices]
        slices[f"{layer.name}.lora_B"] = arrays[f"{layer.name}.lora_B"][:, indices]
    return slices


def task_spec(base: BaseModel, adapter: AdapterSpec) -> TaskSpec:
    return TaskSpec(
        name="tiny",
        base=base,
        adapter=adapter,
        training=TrainingSpec(),
        policy=RoundPolicy(rounds=2, cohort_size=2, quorum=2, sketch_sizes=[1, adapter.r]),
    )
