"""One method on real examples in a process of its own: prints the step times as JSON."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import lean_methods
from bench.example_file import padded, read_examples
from bench.train_methods import Method, Trainer, Work
from edge_sdk.device import peak_rss_bytes
from edge_sdk.text.example import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Fine:
    """What to train.

    Attributes:
        method: How.
        work: Model, k, and the examples of a step.
        examples: File with the examples of all steps, those of the first step first.
        threads: CPU threads.
    """

    method: Method
    work: Work
    examples: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What it took.

    Attributes:
        step_s: Wall time of each step but the first.
        losses: Of every step.
        peak_bytes: Peak resident memory of the process.
    """

    step_s: list[float]
    losses: list[float]
    peak_bytes: int


def main() -> int:
    """Train what the first argument says."""
    fine = msgspec.json.decode(sys.argv[1], type=Fine)
    sys.stdout.write(json.dumps(dataclasses.asdict(train(fine))) + "\n")
    return 0


def train(fine: Fine) -> Trained:
    """Take one step on each batch; batching is part of a step, as it is for a user."""
    examples, size = read_examples(Path(fine.examples)), fine.work.batch_size
    batches = [examples[i : i + size] for i in range(0, len(examples), size)]
    trainer = _trainer(fine, examples, iter(batches))
    losses, step_s = [trainer.step()], list[float]()
    for _ in batches[1:]:
        started = time.perf_counter()
        losses.append(trainer.step())
        step_s.append(time.perf_counter() - started)
    return Trained(step_s=step_s, losses=losses, peak_bytes=peak_rss_bytes())


def _trainer(
    fine: Fine, examples: Sequence[Example], batches: Iterator[Sequence[Example]]
) -> Trainer:
    method, work, threads = fine.method, fine.work, fine.threads
    if method.module == lean_methods.__name__:
        return lean_methods.stepper(method, work, threads, examples, batches)
    peft_methods: Any = importlib.import_module(method.module)
    model = peft_methods.adapted_model(method, work, threads)
    return Trainer(step=peft_methods.stepper(model, method, map(padded, batches)))


if __name__ == "__main__":
    sys.exit(main())
