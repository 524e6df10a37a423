"""The local steps of one device in one round: sketched ranks in, their update out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edge_sdk.base_model import LoadedBase, verify_layers
from edge_sdk.data import Example, collate
from edge_sdk.errors import LossDiverged, TrainingError
from edge_sdk.lora import SketchedAdapter, attach, check_slices
from edge_sdk.predictions import predict
from edge_sdk.sketch import sketched_scaling
from edge_sdk.wire.messages import AdapterSpec, TrainingSpec
from edge_sdk.wire.payload import Arrays

_DATA_ORDER = 1  # the ranks of the round are drawn from the same seed: never from the same stream


@dataclass
class LocalResult:
    """What a device learned in one round.

    Attributes:
        update: Every trained array, after minus before; the server adds it.
        loss: Mean training loss over the local steps.
        losses: Training loss of each step, before it was taken.
        seconds: Wall time of the local steps.
    """

    update: Arrays
    loss: float
    losses: list[float]
    seconds: float


def train_round(
    base: LoadedBase,
    adapter: AdapterSpec,
    k: int,
    slices: Arrays,
    training: TrainingSpec,
    examples: Sequence[Example],
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
) -> LocalResult:
    """Train the k ranks of one sketch for the local steps of one round.

    The same arguments, machine and number of threads give the same update bit for bit. The
    base is as before afterwards, also after an error.

    Args:
        base: The frozen model.
        adapter: The global adapter's sizes and scaling.
        k: Sketch size.
        slices: The device's ranks and the dense parameters, see ``payload.adapter_shapes``.
        training: Hyper-parameters.
        examples: All local examples.
        seed: Of this device in this round; orders the examples.
        on_step: Called after each step with its number, from 1, and its loss.

    Raises:
        WrongBaseModel: The base does not have the adapter's layers.
        AdapterError: The slices are not the adapter at sketch size ``k``.
        LossDiverged: The loss or the result left the finite numbers; says the step.
        TrainingError: No examples, or memory ran out.
    """
    if not examples:
        raise TrainingError("there is no example to train on")
    verify_layers(base, adapter)
    check_slices(adapter, slices, k)
    scale = sketched_scaling(adapter.lora_alpha, adapter.r, k, adapter.use_rslora)
    attached = attach(base.model, adapter, slices, scale)
    started = time.perf_counter()
    try:
        losses = _local_steps(base, attached, training, examples, seed, on_step)
        after = attached.arrays()
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"memory ran out while training {k} ranks on batches of {training.batch_size} x "
            f"{training.max_length} tokens: take a smaller sketch or free memory ({error})"
        ) from error
    finally:
        attached.detach()
    update = {name: after[name] - slices[name] for name in slices}
    if not all(np.isfinite(array).all() for array in update.values()):
        raise _diverged("the trained numbers are", training, training.local_steps)
    return LocalResult(update, sum(losses) / len(losses), losses, time.perf_counter() - started)


def _local_steps(
    base: LoadedBase,
    attached: SketchedAdapter,
    training: TrainingSpec,
    examples: Sequence[Example],
    seed: int,
    on_step: Callable[[int, float], None] | None,
) -> list[float]:
    optimizer = _optimizer(attached, training)
    order = _example_order(len(examples), seed)
    batch_size = min(training.batch_size, len(examples))
    losses = list[float]()
    for step in range(1, training.local_steps + 1):
        chosen = [examples[next(order)] for _ in range(batch_size)]
        predictions = predict(base, collate(chosen, base.tokenizer.pad_token_id))
        loss = predictions.summed_loss() / predictions.count()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise _diverged(f"the loss ({losses[-1]}) is", training, step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if on_step is not None:
            on_step(step, losses[-1])
    return losses


def _optimizer(attached: SketchedAdapter, training: TrainingSpec) -> torch.optim.Optimizer:
    """Return a fresh optimizer: the next round has other ranks, so no state may outlive this."""
    parameters, lr, decay = attached.parameters(), training.local_lr, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)


def _example_order(count: int, seed: int) -> Iterator[int]:
    """Yield example numbers without end: every example once, in random order, then again.

    Like the sketch, only the generator's raw stream is used; NumPy promises to keep that one.
    """
    source = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_DATA_ORDER,)))
    while True:
        yield from np.argsort(np.asarray(source.random_raw(count)), kind="stable").tolist()


def _diverged(what: str, training: TrainingSpec, step: int) -> LossDiverged:
    return LossDiverged(
        f"{what} not finite at local step {step} of {training.local_steps}: "
        f"lower local_lr={training.local_lr}, small sketches need smaller steps",
        step,
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Tell a failed allocation, for which torch has no exception of its own on a CPU."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
