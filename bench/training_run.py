"""One training round in a process of its own: prints its peak memory and step times as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from edge_sdk.compute.execution import Execution
from edge_sdk.device import peak_rss_bytes
from edge_sdk.model.model_folder import read_model_shape
from edge_sdk.model.model_shape import ModelShape
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import train_round
from edge_sdk.training.trainable_base import load_trainable
from edge_sdk.wire.payload import adapter_shapes, encode
from edge_sdk.wire.task import AdapterSpec, BaseModel, TaskType, TrainingSpec

LABELS = ["one", "two"]
GLOBAL_RANK = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What to train.

    Attributes:
        folder: Base model.
        task_type: A classifier has two labels.
        execution: As the planner would choose it.
        batch_size: Examples per optimizer step.
        learned: Tokens of each example that are learned, at random places.
        steps: Optimizer steps.
        threads: CPU threads.
    """

    folder: str
    task_type: TaskType
    execution: Execution
    batch_size: int
    learned: int
    steps: int
    threads: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What it took.

    Attributes:
        peak_bytes: Peak resident memory of the process.
        step_s: Wall time of each step but the first.
        load_s: Wall time of loading the base.
    """

    peak_bytes: int
    step_s: list[float]
    load_s: float


def main() -> int:
    """Train what the first argument says."""
    run = msgspec.json.decode(sys.argv[1], type=Run)
    sys.stdout.write(json.dumps(dataclasses.asdict(measure(run))) + "\n")
    return 0


def measure(run: Run) -> Measured:
    """Load, train on random tokens, encode the update."""
    execution, folder = run.execution, Path(run.folder)
    is_classifier = run.task_type == "SEQ_CLS"
    labels = LABELS if is_classifier else []
    spec = BaseModel(model="m", digest="0" * 64, task_type=run.task_type, labels=labels)
    shape = read_model_shape(folder, run.task_type, len(labels))
    started = time.perf_counter()
    base = load_trainable(folder, spec, execution, run.threads)
    load_s = time.perf_counter() - started
    adapter = AdapterSpec(
        r=GLOBAL_RANK,
        lora_alpha=16.0,
        target_modules=list(shape.default_targets),
        layers=shape.target_layers(shape.default_targets),
        dense=list(shape.dense),
    )
    rng = np.random.default_rng(0)
    slices = {
        name: (0.01 * rng.standard_normal(size)).astype(np.float32)
        for name, size in adapter_shapes(adapter, execution.k).items()
    }
    marks = list[float]()
    result = train_round(
        base,
        adapter,
        execution.k,
        slices,
        TrainingSpec(
            local_steps=run.steps,
            local_lr=1e-5,
            batch_size=run.batch_size,
            max_length=execution.length,
        ),
        _examples(shape, run, rng, is_classifier),
        seed=0,
        on_step=lambda step, loss: marks.append(time.perf_counter()),
        micro_batch=execution.micro_batch,
        recomputed_blocks=execution.recomputed_blocks,
        trained_targets=execution.trained_targets,
    )
    encode(result.update, "fp32", b"{}")
    step_s = [after - before for before, after in pairwise(marks)]
    return Measured(peak_bytes=peak_rss_bytes(), step_s=step_s, load_s=load_s)


def _examples(
    shape: ModelShape, run: Run, rng: np.random.Generator, is_classifier: bool
) -> list[Example]:
    """Make random examples; every other one is a token short, as real ones differ in length."""
    examples = []
    for i in range(4 * run.batch_size):
        length = max(2, run.execution.length - i % 2)
        is_learned = np.zeros(length, dtype=bool)
        if not is_classifier:
            is_learned[rng.permutation(length)[: run.learned]] = True
        label = i // 2 % len(LABELS) if is_classifier else None
        tokens = rng.integers(1, shape.vocab_size, length).tolist()
        examples.append(Example(tokens, is_learned.tolist(), label))
    return examples


if __name__ == "__main__":
    sys.exit(main())
