"""Real examples of various lengths: packed and without padding, against padded batches.

Every method trains the same examples in the same order; only the completions are learned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.example_file import write_examples
from bench.fine_tuning_data import fine_tuning_sets
from bench.fine_tuning_once import Fine, Trained
from bench.fresh_process import measure_fresh
from bench.report import Claim
from bench.train_methods import OURS_INT8, OURS_LEAN, OURS_NF4, SMOLLM2, TEXTBOOK, Method, Products
from bench.train_speed import Plan
from edge_sdk.text.example import Example

EXAMPLES_PER_STEP = 8
STEPS = 7  # the first one is not timed
LEAST_SPEED_OF_TEXTBOOK = 3.5
MOST_LOSS_DIFFERENCE = 0.02
_WORK = replace(SMOLLM2, batch_size=EXAMPLES_PER_STEP, length=1)  # examples have their own lengths
_OURS = tuple(replace(method, tokens_at_once=0) for method in (OURS_LEAN, OURS_INT8, OURS_NF4))


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """One set of examples.

    Attributes:
        name: Of the set.
        tokens: Of all examples.
        padded: The same with every example as long as the longest of its step.
        runs: What was measured by the method's name, in the order of the repetitions.
    """

    name: str
    tokens: int
    padded: int
    runs: dict[str, list[Trained]]

    def examples_per_s(self, method: Method) -> float:
        """Return the examples per second of the shortest steps: the others were disturbed."""
        steps = zip(*(run.step_s for run in self.runs[method.name]), strict=True)
        seconds: float = sum(min(step) for step in steps)
        return EXAMPLES_PER_STEP * (STEPS - 1) / seconds

    def speed_over(self, method: Method, other: Method) -> float:
        """Return how many times faster a method is: median over the repetitions."""
        pairs = zip(self.runs[method.name], self.runs[other.name], strict=True)
        return median(sum(theirs.step_s) / sum(own.step_s) for own, theirs in pairs)

    def peak_bytes(self, method: Method) -> int:
        """Return the peak resident memory, median, imports included."""
        return int(median(run.peak_bytes for run in self.runs[method.name]))

    def first_loss(self, method: Method) -> float:
        """Return the loss before the first step."""
        return self.runs[method.name][0].losses[0]


def measure_fine_tuning(console: Console, products: Products, plan: Plan) -> list[FineTuning]:
    """Train every method on every set in turn, and print the table.

    Args:
        console: For progress and the table.
        products: What textbook QLoRA multiplies in.
        plan: Repetitions and threads.
    """
    methods = (replace(TEXTBOOK, products=products), *_OURS)
    sets = fine_tuning_sets(_WORK.folder, EXAMPLES_PER_STEP * STEPS)
    with tempfile.TemporaryDirectory() as scratch:
        measured = [
            _measure(console, name, examples, Path(scratch), methods, plan)
            for name, examples in sets.items()
        ]
    console.print(_table(measured, methods))
    return measured


def fine_tuning_claims(measured: Sequence[FineTuning]) -> Iterator[Claim]:
    """Yield the speed of the better method of ours on every set, and that it learns the same."""
    for found in measured:
        best = max(_OURS, key=lambda method: found.speed_over(method, TEXTBOOK))
        speed = found.speed_over(best, TEXTBOOK)
        yield Claim(
            claim=f"{found.name}: {best.name} / {TEXTBOOK.name}: labelled examples per second",
            target=f">= {LEAST_SPEED_OF_TEXTBOOK:g}",
            measured=speed,
            holds=speed >= LEAST_SPEED_OF_TEXTBOOK,
        )
        difference = abs(found.first_loss(OURS_NF4) / found.first_loss(TEXTBOOK) - 1)
        yield Claim(
            claim=f"{found.name}: first loss of {OURS_NF4.name} against {TEXTBOOK.name}",
            target=f"<= {MOST_LOSS_DIFFERENCE:g}",
            measured=difference,
            holds=difference <= MOST_LOSS_DIFFERENCE,
        )


def json_rows(measured: Sequence[FineTuning]) -> list[dict[str, Any]]:
    """Return everything, for the JSON file."""
    return [asdict(found) for found in measured]


def _measure(
    console: Console,
    name: str,
    examples: Sequence[Example],
    scratch: Path,
    methods: Sequence[Method],
    plan: Plan,
) -> FineTuning:
    path = write_examples(scratch / f"{name}.json", examples)
    runs: dict[str, list[Trained]] = {method.name: [] for method in methods}
    for repetition in range(1, plan.repetitions + 1):
        for method in methods:
            fine = Fine(method=method, work=_WORK, examples=str(path), threads=plan.threads)
            run = measure_fresh("bench.fine_tuning_once", fine, Trained, plan.threads)
            runs[method.name].append(run)
            speed = EXAMPLES_PER_STEP * (STEPS - 1) / sum(run.step_s)
            console.print(
                f"{name} {repetition}/{plan.repetitions} {method.name}: {speed:.2f} examples/s"
            )
    lengths = [len(example.tokens) for example in examples]
    steps = [lengths[i : i + EXAMPLES_PER_STEP] for i in range(0, len(lengths), EXAMPLES_PER_STEP)]
    padded = sum(len(step) * max(step) for step in steps)
    return FineTuning(name=name, tokens=sum(lengths), padded=padded, runs=runs)


def _table(measured: Sequence[FineTuning], methods: Sequence[Method]) -> Table:
    title = f"{_WORK.model}, k = {_WORK.k}, {EXAMPLES_PER_STEP} real examples per step"
    table = Table("set", "method", title=title)
    for name in ("tokens", "padded", "examples/s", "x textbook", "peak MB", "first loss"):
        table.add_column(name, justify="right")
    for found in measured:
        for method in methods:
            table.add_row(
                found.name,
                method.name,
                str(found.tokens),
                str(found.padded),
                f"{found.examples_per_s(method):.2f}",
                f"{found.speed_over(method, TEXTBOOK):.2f}",
                f"{found.peak_bytes(method) / 1e6:.0f}",
                f"{found.first_loss(method):.4f}",
            )
    return table
