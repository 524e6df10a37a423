"""The local steps of one device in one round: sketched ranks in, their update out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edge_sdk.errors import LossDiverged, OutOfMemory, TrainingError
from edge_sdk.general.lora import check_slices
from edge_sdk.memory.memory_guard import is_out_of_memory
from edge_sdk.model.scores import Score
from edge_sdk.sketch import Factors, sketched_scaling
from edge_sdk.text.example import Example
from edge_sdk.training.optimizers import SGD, AdamW, Optimizer
from edge_sdk.training.progress import Progress, Steps
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec, TrainingSpec

log = logging.getLogger("edge_sdk")

_DATA_ORDER = 1  # the ranks of the round are drawn from the same seed: never from the same stream


class Trainee(Protocol):
    """The ranks one device trains in one round, on a frozen base."""

    def parameters(self, factors: Factors = "AB") -> list[nn.Parameter]:
        """Return what is trained when these factors are; dense parameters always are."""

    def gradients(self, examples: Sequence[Example]) -> float:
        """Set the gradients to those of the mean loss over everything learned; return it."""

    def arrays(self) -> Arrays:
        """Return copies of all values, trained or not, under the names the wire uses."""

    def pull(self, towards: Arrays, share: float) -> None:
        """Move every trained value a share of the way to another; names are those of the wire."""

    def scores(self, examples: Iterable[Example]) -> Iterator[Score]:
        """Yield how well the model with these ranks predicts each example; no gradients."""

    def detach(self) -> None:
        """Leave the base as it was before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """A proximal pull: after each step ``v <- v - min(1, local_lr * strength) * (v - w)``.

    It is the step against ``strength / 2 * |v - w|^2``, taken beside the optimizer as AdamW takes
    its decay: the optimizer's statistics see the loss alone. The share is capped at 1, where the
    step lands on ``w``.

    Attributes:
        towards: ``w``, under the names and in the shapes of what is trained.
        strength: Lambda; 0 pulls nothing.

    Source:
        Ditto: Li et al. 2021, arXiv:2012.04221, algorithm 1.
    """

    towards: Arrays
    strength: float


class TrainableBase(Protocol):
    """A frozen base that ranks can be trained on."""

    def verify_layers(self, adapter: AdapterSpec) -> None:
        """Raise WrongBaseModel unless the model has every layer of an adapter, in its size."""

    def trainee(
        self,
        adapter: AdapterSpec,
        slices: Arrays,
        scale: float,
        trained_targets: Collection[str] | None,
        examples: Sequence[Example],
        micro_batch: int | None,
        recomputed_blocks: int,
    ) -> Trainee:
        """Return ranks of one sketch on this base."""


@dataclass
class LocalResult:
    """What a device learned in one round.

    Attributes:
        update: Every trained array, after minus before; the server adds it.
        losses: Training loss of each step, before it was taken.
        step_s: Wall time of each step, in seconds.
        longest: Tokens of the longest example that was trained on.
    """

    update: Arrays
    losses: list[float]
    step_s: list[float]
    longest: int

    @property
    def loss(self) -> float:
        """Mean training loss over the local steps."""
        return sum(self.losses) / len(self.losses)

    @property
    def seconds(self) -> float:
        """Wall time of the local steps."""
        return sum(self.step_s)


class _Steps:
    """The steps taken so far, and what they changed."""

    def __init__(self, parameters: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
        self.losses: list[float] = []
        self.step_s: list[float] = []
        self.longest = 0
        self._values = {f"value.{i}": x.detach() for i, x in enumerate(parameters)}
        self._optimizer = optimizer

    def progress(self) -> Progress:
        """Return where the steps stand; the next one may change the arrays."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        return Progress(list(self.losses), list(self.step_s), self.longest, arrays)

    def go_on_from(self, start: Progress) -> None:
        """Take over what was done before and empty it, unless it is of other tensors."""
        own = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        if own != {name: array.shape for name, array in start.arrays.items()}:
            log.warning("the %d steps done before are of other numbers: starting over", start.step)
            return
        for name, value in self._values.items():
            value.copy_(torch.tensor(start.arrays.pop(name)))
        state = {name: torch.tensor(start.arrays[name]) for name in self._optimizer.state()}
        self._optimizer.restore(state, start.step)
        start.arrays.clear()
        self.losses, self.step_s = list(start.losses), list(start.step_s)
        self.longest = start.longest

    def _tensors(self) -> dict[str, Tensor]:
        return {**self._values, **self._optimizer.state()}


def train_round(
    base: TrainableBase,
    adapter: AdapterSpec,
    k: int,
    slices: Arrays,
    training: TrainingSpec,
    examples: Sequence[Example],
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
    *,
    micro_batch: int | None = None,
    recomputed_blocks: int = 0,
    trained_targets: Collection[str] | None = None,
    factors: Factors = "AB",
    scale: float | None = None,
    pull: Pull | None = None,
    start: Progress | None = None,
    on_progress: Callable[[Steps], None] | None = None,
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
        micro_batch: Examples of full length computed at once; their gradients add up to that of
            the batch. None computes the whole batch at once.
        recomputed_blocks: Blocks that keep their input alone and are computed again going back.
        trained_targets: Module name endings to train; the others keep the ranks they were
            given, and their update is zero. None trains all.
        factors: What is trained of them; the update of the other factor is zero.
        scale: Of ``B A`` in the forward; None is that of a sketch.
        pull: Towards what the values are pulled after each step; None pulls nowhere.
        start: Where training with these very arguments stood before; its arrays are emptied.
        on_progress: Called after each step; may take what going on from there needs.

    Raises:
        WrongBaseModel: The base does not have the adapter's layers.
        AdapterError: The slices are not the adapter at sketch size ``k``.
        LossDiverged: The loss or the result left the finite numbers; says the step.
        OutOfMemory: Memory ran out; a smaller plan may fit.
        TrainingError: No examples.
    """
    if not examples:
        raise TrainingError("there is no example to train on")
    base.verify_layers(adapter)
    check_slices(adapter, slices, k)
    if pull is not None:
        check_slices(adapter, pull.towards, k)
    if scale is None:
        scale = sketched_scaling(adapter.lora_alpha, adapter.r, k, adapter.use_rslora)
    failure = None
    try:
        trainee = base.trainee(
            adapter, slices, scale, trained_targets, examples, micro_batch, recomputed_blocks
        )
        try:
            done = _local_steps(
                trainee, factors, training, examples, seed, on_step, pull, start, on_progress
            )
            update = _difference(trainee.arrays(), slices)
        finally:
            trainee.detach()
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        failure = str(error).split("\n", 1)[0] or type(error).__name__
    if failure is not None:  # raised out here: the caught one holds the failed step's tensors
        raise OutOfMemory(
            f"memory ran out while training {k} ranks on {micro_batch or training.batch_size} "
            f"examples at once: take a smaller sketch or free memory ({failure})"
        )
    if not all(np.isfinite(array).all() for array in update.values()):
        raise _diverged("the trained numbers are", training, training.local_steps)
    return LocalResult(update, done.losses, done.step_s, done.longest)


def _difference(after: Arrays, before: Arrays) -> Arrays:
    return {name: after[name] - before[name] for name in before}


def _local_steps(
    trainee: Trainee,
    factors: Factors,
    training: TrainingSpec,
    examples: Sequence[Example],
    seed: int,
    on_step: Callable[[int, float], None] | None,
    pull: Pull | None,
    start: Progress | None,
    on_progress: Callable[[Steps], None] | None,
) -> _Steps:
    parameters = trainee.parameters(factors)
    optimizer = _optimizer(parameters, training)
    batch_size = min(training.batch_size, len(examples))
    done = _Steps(parameters, optimizer)
    if start is not None:
        done.go_on_from(start)
    taken = len(done.losses)
    order = islice(_example_order(len(examples), seed), taken * batch_size, None)
    for step in range(taken + 1, training.local_steps + 1):
        started = time.perf_counter()
        chosen = [examples[next(order)] for _ in range(batch_size)]
        done.longest = max(done.longest, *(len(example.tokens) for example in chosen))
        loss = trainee.gradients(chosen)
        if not math.isfinite(loss):
            raise _diverged(f"the loss ({loss}) is", training, step)
        optimizer.step()
        if pull is not None:
            trainee.pull(pull.towards, min(1.0, training.local_lr * pull.strength))
        done.losses.append(loss)
        done.step_s.append(time.perf_counter() - started)
        if on_progress is not None:
            on_progress(done)
        if on_step is not None:
            on_step(step, loss)
    return done


def _optimizer(parameters: Sequence[nn.Parameter], training: TrainingSpec) -> Optimizer:
    """Return a fresh optimizer: the next round has other ranks, so no state may outlive this."""
    chosen = SGD if training.optimizer == "sgd" else AdamW
    return chosen(parameters, training.local_lr, training.weight_decay)


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
