"""Train the adapter that inference is measured with, in a process of its own: 4-bit base, TREC."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import numpy as np

from demo.trec import questions, record
from edge_sdk.general.base_model import load_base
from edge_sdk.model.model_folder import read_config, weights_digest
from edge_sdk.model.model_shape import read_shape
from edge_sdk.model.peft_folder import write_peft_folder
from edge_sdk.sketch import lora_scaling
from edge_sdk.text.data import load_examples
from edge_sdk.training.local_steps import train_round
from edge_sdk.wire.payload import Arrays, adapter_shapes
from edge_sdk.wire.task import AdapterSpec, BaseModel, RoundPolicy, TaskSpec, TrainingSpec

HELDOUT = 300
MAX_LENGTH = 32


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """What to train.

    Attributes:
        model: Folder of the base model.
        adapter: PEFT folder to write.
        examples: JSONL file to write what is learned to.
        r: Rank.
        local_steps: Optimizer steps of 8 examples; 0 leaves the ranks random.
        threads: CPU threads.
    """

    model: str
    adapter: str
    examples: str
    r: int
    local_steps: int
    threads: int


def write_heldout(path: Path) -> None:
    """Write the questions that no adapter here has learned."""
    _write(path, range(HELDOUT))


def main() -> int:
    """Train what the first argument says; print the losses."""
    lesson = msgspec.json.decode(sys.argv[1], type=Lesson)
    folder = Path(lesson.model)
    spec = BaseModel(model=str(folder), digest=weights_digest(folder))
    shape = read_shape(read_config(folder))
    adapter = AdapterSpec(
        r=lesson.r,
        lora_alpha=2.0 * lesson.r,
        target_modules=list(shape.default_targets),
        layers=shape.target_layers(shape.default_targets),
    )
    training = TrainingSpec(
        local_steps=max(1, lesson.local_steps), local_lr=1e-3, max_length=MAX_LENGTH
    )
    policy = RoundPolicy(rounds=1, cohort_size=1, quorum=1, sketch_sizes=[lesson.r])
    task = TaskSpec(name="bench", base=spec, adapter=adapter, training=training, policy=policy)
    arrays, losses = _first(adapter, is_random=lesson.local_steps == 0), list[float]()
    if lesson.local_steps:
        base = load_base(folder, spec, "nf4", lesson.threads)
        _write(Path(lesson.examples), range(HELDOUT, HELDOUT + 8 * lesson.local_steps))
        examples = load_examples(Path(lesson.examples), base.tokenizer, spec, MAX_LENGTH)
        done = train_round(base, adapter, lesson.r, arrays, training, examples, seed=0)
        arrays = {name: array + done.update[name] for name, array in arrays.items()}
        losses = done.losses
    write_peft_folder(Path(lesson.adapter), task, arrays, str(folder))
    sys.stdout.write(json.dumps(losses) + "\n")
    return 0


def _first(adapter: AdapterSpec, *, is_random: bool) -> Arrays:
    """Return ranks that change nothing yet, or random ones that change a little."""
    rng = np.random.default_rng(0)
    scale = lora_scaling(adapter.lora_alpha, adapter.r, adapter.use_rslora)
    found: Arrays = {}
    for name, shape in adapter_shapes(adapter, adapter.r).items():
        size = 0.02 if name.endswith(".lora_A") else 0.02 / scale if is_random else 0.0
        found[name] = (size * rng.standard_normal(shape)).astype(np.float32)
    return found


def _write(path: Path, places: range) -> None:
    order = np.random.default_rng(7).permutation(len(questions()))
    found = [record(questions()[order[i]]) for i in places]
    path.write_text("".join(json.dumps(x) + "\n" for x in found), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
