"""Real steps on real examples in one number format, then the loss on others: prints it as JSON.

Every adapter is judged on the same base, held in bf16 and computed in wide products.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from bench.example_file import read_examples
from bench.lean_methods import lean_base
from bench.train_methods import OURS_BF16, Method, Work, adapter_of, first_ranks
from edge_sdk.lean.llama import input_groups
from edge_sdk.lean.packing import micro_batches
from edge_sdk.lean.ranks import Ranks
from edge_sdk.sketch import sketched_scaling
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import train_round
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import TrainingSpec

_TOKENS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RealRun:
    """What to train.

    Attributes:
        method: How; one of ours.
        work: Model, k, and examples per step.
        steps: Optimizer steps.
        learning_rate: Of AdamW.
        seed: Orders the examples.
        training: File with the examples to train on.
        held_out: File with the others.
        threads: CPU threads.
    """

    method: Method
    work: Work
    steps: int
    learning_rate: float
    seed: int
    training: str
    held_out: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RealLoss:
    """What came of it.

    Attributes:
        before: Mean loss per learned token of the other examples, with the first ranks.
        after: The same after training.
    """

    before: float
    after: float


def main() -> int:
    """Train and judge what the first argument says."""
    run = msgspec.json.decode(sys.argv[1], type=RealRun)
    first = first_ranks(run.work)
    trained = _trained(run, first)
    before, after = (_held_out_loss(run, ranks) for ranks in (first, trained))
    sys.stdout.write(json.dumps({"before": before, "after": after}) + "\n")
    return 0


def _trained(run: RealRun, first: Arrays) -> Arrays:
    examples = read_examples(Path(run.training))
    spec = TrainingSpec(
        local_steps=run.steps,
        local_lr=run.learning_rate,
        batch_size=run.work.batch_size,
        max_length=max(len(example.tokens) for example in examples),
    )
    base = lean_base(run.method, run.work, run.threads)
    done = train_round(base, adapter_of(run.work), run.work.k, first, spec, examples, run.seed)
    return {name: np.asarray(first[name] + done.update[name], np.float32) for name in first}


def _held_out_loss(run: RealRun, ranks: Arrays) -> float:
    """Return the mean loss over all learned tokens."""
    examples: Sequence[Example] = read_examples(Path(run.held_out))
    base, adapter = lean_base(OURS_BF16, run.work, run.threads), adapter_of(run.work)
    scale = sketched_scaling(adapter.lora_alpha, adapter.r, run.work.k, adapter.use_rslora)
    groups = input_groups(base.architecture.shape.num_layers)
    on_base = Ranks(adapter, ranks, scale, None, groups)
    passes = base.passes(max(len(example.tokens) for example in examples))
    batches = micro_batches(examples, _TOKENS_AT_ONCE)
    learned = sum(len(batch.targets) for batch in batches)
    return sum(passes.loss(batch, on_base) for batch in batches) / learned


if __name__ == "__main__":
    sys.exit(main())
