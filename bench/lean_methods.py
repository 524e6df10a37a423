"""This project's trainer, one optimizer step at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import cycle

from bench.step_parts import StepParts
from bench.train_methods import (
    LEARNING_RATE,
    Method,
    Trainer,
    Work,
    adapter_of,
    first_ranks,
    token_ids,
)
from edge_sdk.compute.execution import ProductFormat
from edge_sdk.lean.base import LeanBase, open_lean_base
from edge_sdk.sketch import sketched_scaling
from edge_sdk.text.example import Example
from edge_sdk.training.optimizers import AdamW


def import_libraries(method: Method, work: Work) -> None:
    """Import what is imported on first use: nothing."""


def build(method: Method, work: Work, threads: int) -> Trainer:
    """Open the prepared base and set the adapter up."""
    examples = [Example(ids, [True] * len(ids)) for ids in token_ids(work)]
    return stepper(method, work, threads, examples, cycle([examples]))


def lean_base(method: Method, work: Work, threads: int) -> LeanBase:
    """Open the prepared base."""
    products: ProductFormat = "int8" if method.products == "int8" else "wide"
    return open_lean_base(work.folder, method.held, products, threads)


def stepper(
    method: Method,
    work: Work,
    threads: int,
    examples: Sequence[Example],
    batches: Iterator[Sequence[Example]],
) -> Trainer:
    """Set the adapter up for all examples; every step trains the next batch of them."""
    base, adapter = lean_base(method, work, threads), adapter_of(work)
    trainee = base.trainee(
        adapter,
        first_ranks(work),
        sketched_scaling(adapter.lora_alpha, adapter.r, work.k, adapter.use_rslora),
        None,
        examples,
        method.tokens_at_once // work.length or None,
        base.architecture.shape.num_layers if method.checkpointing else 0,
    )
    optimizer = AdamW(trainee.parameters(), LEARNING_RATE, weight_decay=0.0)
    parts, parts_s = StepParts(), dict[str, float]()

    def step() -> float:
        parts.take()
        loss = trainee.gradients(next(batches))
        started = time.perf_counter()
        optimizer.step()
        parts_s.update(parts.take(), optimizer=time.perf_counter() - started)
        return loss

    return Trainer(step=step, parts_s=parts_s)
