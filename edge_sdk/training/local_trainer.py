"""Train the rounds of one task on this device, within the memory its plan was given."""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_sdk.compute.execution import ProductFormat, Quantization
from edge_sdk.device import peak_rss_bytes
from edge_sdk.errors import DataError, ModelError, OutOfMemory
from edge_sdk.memory.heap import allocate_exactly, release_freed_memory
from edge_sdk.memory.memory_guard import MemoryGuard, is_out_of_memory
from edge_sdk.model.scores import Score
from edge_sdk.planning.plan import Plan
from edge_sdk.quantities import format_bytes
from edge_sdk.sketch import sketched_scaling
from edge_sdk.text.example import Example
from edge_sdk.text.held_out import held_out
from edge_sdk.text.token_file import tokenized_examples
from edge_sdk.training.local_steps import LocalResult, Pull, TrainableBase, train_round
from edge_sdk.training.progress import Progress, Steps
from edge_sdk.training.trainable_base import load_trainable, warm_up_for
from edge_sdk.wire.messages import Assignment
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import TaskSpec

log = logging.getLogger("edge_sdk")

NEAR_BUDGET = 0.9  # a load that fails with so much of it in use is taken to lack memory


class LocalTrainer:
    """The private examples, the frozen base and the budget of one task.

    Args:
        task: What is trained.
        folder: Base model.
        data: JSONL file with the private examples.
        threads: CPU threads.
        held_out_share: Of the examples that are never trained on; 0 trains on all.

    Attributes:
        examples: To train on.
        held_out: To judge adapters by; empty where there are too few.

    Raises:
        DataError: The examples cannot be read.
        ModelError: The tokenizer cannot be loaded.
    """

    def __init__(
        self,
        task: TaskSpec,
        folder: Path,
        data: Path,
        threads: int,
        held_out_share: float = 0.0,
    ) -> None:
        allocate_exactly()
        self._task = task
        self._folder = folder
        self._data = data
        self._threads = threads
        self._base: TrainableBase | None = None
        self._held: tuple[Quantization, ProductFormat] | None = None
        self._held_out_share = held_out_share
        self.read_again()

    @property
    def longest(self) -> int:
        """Tokens of the longest example, held out or not."""
        return max(len(example.tokens) for example in (*self.examples, *self.held_out))

    @property
    def learned(self) -> int:
        """Tokens learned in one example, at most; 1 for a classifier."""
        return max(1, *(int(example.is_learned.sum()) for example in self.examples))

    @property
    def is_outdated(self) -> bool:
        """Whether the data file has changed since it was read."""
        return _stamp(self._data) != self._stamp

    def read_again(self) -> None:
        """Read the examples as they are in the file now; a base that is loaded stays.

        Raises:
            DataError: They cannot be read; those of before stay.
        """
        self._stamp = _stamp(self._data)
        every = self._read_examples(self._task.training.max_length)
        self._is_held_out = held_out(every, self._held_out_share)
        self._split(every)

    def data_digest(self) -> str:
        """Return the SHA-256 of the examples to train on, in their order, as 64 hex digits."""
        found = hashlib.sha256()
        for example in self.examples:
            found.update(f"{len(example.tokens)} {example.label} ".encode())
            found.update(example.tokens.tobytes() + example.is_learned.tobytes())
        return found.hexdigest()

    def prepare(self, plan: Plan) -> None:
        """Load the base as a plan says, unless it is there already.

        Raises:
            OutOfMemory: It does not fit the plan's budget.
            ModelError: It cannot be loaded.
        """
        execution = plan.execution
        if execution.length < self.longest:
            self._split(self._read_examples(execution.length))
        held = (execution.quantization, execution.products)
        if self._base is not None and self._held == held:
            return
        self._drop_base()
        warm_up_for(self._folder, self._task.base, execution, self._threads)
        peak_before = peak_rss_bytes()
        log.info("loading the base model from %s as %s", self._folder, execution.quantization)
        failure = None
        with self._guard(plan) as guard:
            try:
                self._base = load_trainable(self._folder, self._task.base, execution, self._threads)
                self._base.verify_layers(self._task.adapter)
                self._held = held
            except (ModelError, MemoryError, RuntimeError, OSError) as error:
                if not _lacked_memory(error, plan, peak_before):
                    raise
                failure = str(error).split("\n", 1)[0]
            guard.check()
        if failure is not None:
            self._drop_base()
            raise OutOfMemory(f"memory ran out while the base model was loaded: {failure}")

    def train(
        self,
        plan: Plan,
        work: Assignment,
        slices: Arrays,
        pull: Pull | None = None,
        start: Progress | None = None,
        on_progress: Callable[[Steps], None] | None = None,
    ) -> LocalResult:
        """Carry out an assignment.

        Args:
            plan: How.
            work: What.
            slices: Where it starts from.
            pull: Towards what it is pulled; None of a round.
            start: Where the same work stood before; its arrays are emptied.
            on_progress: Called after each step; may take what going on from there needs.

        Raises:
            OutOfMemory: The budget, or the device, has no more memory; a smaller plan may fit.
            LossDiverged: The loss left the finite numbers.
        """
        self.prepare(plan)
        assert self._base is not None  # noqa: S101 - what prepare() is for
        execution = plan.execution
        try:
            with self._guard(plan) as guard:

                def checked(step: int, loss: float) -> None:
                    log.debug("step %d: loss %.4f", step, loss)
                    guard.check()

                return train_round(
                    self._base,
                    self._task.adapter,
                    work.k,
                    slices,
                    work.training,
                    self.examples,
                    work.seed,
                    on_step=checked,
                    micro_batch=execution.micro_batch,
                    recomputed_blocks=execution.recomputed_blocks,
                    trained_targets=execution.trained_targets,
                    pull=pull,
                    start=start,
                    on_progress=on_progress,
                )
        finally:
            gc.collect()
            release_freed_memory()

    def scores(self, plan: Plan, adapter: Arrays, examples: Sequence[Example]) -> list[Score]:
        """Say how well the base predicts examples with an adapter at rank r on it.

        Raises:
            OutOfMemory: The budget, or the device, has no more memory.
        """
        self.prepare(plan)
        assert self._base is not None  # noqa: S101 - what prepare() is for
        spec = self._task.adapter
        scale = sketched_scaling(spec.lora_alpha, spec.r, spec.r, spec.use_rslora)
        failure = None
        found = list[Score]()
        try:
            with self._guard(plan) as guard:
                trainee = self._base.trainee(spec, adapter, scale, (), examples, 1, 0)
                try:
                    for score in trainee.scores(examples):
                        found.append(score)
                        guard.check()
                finally:
                    trainee.detach()
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error).split("\n", 1)[0] or type(error).__name__
        finally:
            gc.collect()
            release_freed_memory()
        if failure is not None:
            raise OutOfMemory(f"memory ran out while an adapter was tried: {failure}")
        return found

    def _split(self, every: Sequence[Example]) -> None:
        """Keep what is held out apart; the same examples as before, however long they are now.

        What an app has appended since waits until the examples are read again.
        """
        if len(every) < len(self._is_held_out):
            raise DataError(f"{self._data} has lost examples while it was read: start again")
        pairs = list(zip(every, self._is_held_out, strict=False))
        self.examples = [example for example, is_kept_apart in pairs if not is_kept_apart]
        self.held_out = [example for example, is_kept_apart in pairs if is_kept_apart]

    def _guard(self, plan: Plan) -> MemoryGuard:
        budget = plan.budget
        return MemoryGuard(
            budget.memory_bytes, floor_bytes=budget.floor_bytes, on_pause=_tell_of_pause
        )

    def _drop_base(self) -> None:
        self._base = None
        gc.collect()
        release_freed_memory()

    def _read_examples(self, max_length: int) -> Sequence[Example]:
        return tokenized_examples(self._data, self._folder, self._task.base, max_length)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file does; None of one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _lacked_memory(error: Exception, plan: Plan, peak_before: int) -> bool:
    """Tell whether loading ran out of memory, which transformers does not always say."""
    peak_bytes = peak_rss_bytes()
    is_near = peak_bytes > peak_before and peak_bytes >= NEAR_BUDGET * plan.budget.memory_bytes
    return is_near or is_out_of_memory(error)


def describe(plan: Plan) -> str:
    """Say in one line what a plan does."""
    execution = plan.execution
    how = f"{execution.quantization}, {execution.micro_batch} examples at once"
    if execution.products == "int8":
        how += ", 8-bit arithmetic"
    if execution.recomputed_blocks:
        how += f", {execution.recomputed_blocks} blocks computed again"
    return (
        f"trains {plan.k} of the adapter's {plan.r} ranks ({how}) in about "
        f"{format_bytes(plan.cost.peak_bytes)} of {format_bytes(plan.budget.memory_bytes)}, "
        f"{plan.cost.step_s:.1f} s per step"
    )


def _tell_of_pause(seconds: float) -> None:
    log.info("paused for %.0f s: other programs needed the memory", seconds)
