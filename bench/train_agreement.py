"""Is it the same training? Gradients beside PEFT's and beside fp64, and the loss it leads to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.agreement_gradients import TEXTBOOK_BF16, GradientCheck, GradientError
from bench.agreement_training import RealLoss, RealRun
from bench.example_file import write_examples
from bench.fine_tuning_data import fine_tuning_sets
from bench.fresh_process import measure_fresh
from bench.report import Claim
from bench.train_methods import (
    OURS_BF16,
    OURS_INT8,
    OURS_NF4,
    PEFT_BF16,
    SMOLLM2,
    Method,
)
from bench.train_speed import Plan
from edge_sdk.text.example import Example

SET = "commonsense"
BATCH = 4
TRAINED, HELD_OUT = 800, 128
STEPS, EXAMPLES_PER_STEP, LEARNING_RATE = 100, 8, 5e-4
SEEDS = (1, 2, 3)
MOST_DIFFERENCE_FP32 = 1e-5
LEAST_COSINE = 0.98
MOST_DEVIATIONS = 2.0
_WORK = replace(SMOLLM2, batch_size=EXAMPLES_PER_STEP, length=1)  # examples have their own lengths
_TRAINED = tuple(replace(x, tokens_at_once=0) for x in (OURS_BF16, OURS_INT8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Everything compared.

    Attributes:
        families: Worst relative difference to PEFT's gradients in fp32, by family.
        gradients: On real weights and a real batch, of every method.
        losses: After training on real examples, by method, for each of ``SEEDS``.
    """

    families: dict[str, float]
    gradients: list[GradientError]
    losses: dict[str, list[RealLoss]]

    def error(self, method: Method) -> float:
        """Return the error of a method's gradients to fp64 on the values of its base."""
        return next(row.error for row in self.gradients if row.method == method.name)

    def cosine_bf16(self, method: Method) -> float:
        """Return the cosine of a method's gradients with ours in bf16."""
        return next(row.cosine_bf16 for row in self.gradients if row.method == method.name)

    def after(self, method: Method) -> list[float]:
        """Return the held-out losses of a method after training."""
        return [loss.after for loss in self.losses[method.name]]


def measure_agreement(console: Console, plan: Plan) -> Agreement:
    """Compare everything, and print the tables."""
    threads = plan.threads
    families = measure_fresh("bench.agreement_families", threads, dict[str, float], threads)
    examples = fine_tuning_sets(_WORK.folder, TRAINED + HELD_OUT)[SET]
    with tempfile.TemporaryDirectory() as scratch:
        batch = write_examples(Path(scratch) / "batch.json", examples[:BATCH])
        check = GradientCheck(examples=str(batch), threads=threads)
        gradients = measure_fresh("bench.agreement_gradients", check, list[GradientError], threads)
        losses = _losses(console, Path(scratch), examples, threads)
    found = Agreement(families=families, gradients=gradients, losses=losses)
    for table in (_families(found), _gradients(found), _training(found)):
        console.print(table)
    return found


def agreement_claims(found: Agreement) -> Iterator[Claim]:
    """Yield what must hold."""
    worst = max(found.families.values())
    yield _at_most(
        "gradients in fp32 against PEFT's, worst of all families", MOST_DIFFERENCE_FP32, worst
    )
    for ours, theirs in ((OURS_BF16, PEFT_BF16), (OURS_NF4, TEXTBOOK_BF16)):
        claim = f"{ours.name} / {theirs.name}: distance of the gradients from fp64"
        yield _at_most(claim, 1.0, found.error(ours) / found.error(theirs))
    cosine = found.cosine_bf16(OURS_INT8)
    yield Claim(
        claim=f"cosine of the gradients of {OURS_INT8.name} with those of {OURS_BF16.name}",
        target=f">= {LEAST_COSINE:g}",
        measured=cosine,
        holds=cosine >= LEAST_COSINE,
    )
    wide = found.after(OURS_BF16)
    for method in _TRAINED[1:]:
        apart = abs(mean(found.after(method)) - mean(wide)) / stdev(wide)
        yield _at_most(
            f"held-out loss after {STEPS} steps, {method.name} against {OURS_BF16.name}: "
            "difference in standard deviations over seeds",
            MOST_DEVIATIONS,
            apart,
        )


def json_rows(found: Agreement) -> list[dict[str, Any]]:
    """Return everything, for the JSON file."""
    return [asdict(found)]


def _losses(
    console: Console, scratch: Path, examples: Sequence[Example], threads: int
) -> dict[str, list[RealLoss]]:
    training = write_examples(scratch / "training.json", examples[HELD_OUT:])
    held_out = write_examples(scratch / "held-out.json", examples[:HELD_OUT])
    losses: dict[str, list[RealLoss]] = {method.name: [] for method in _TRAINED}
    runs = [
        RealRun(
            method=method,
            work=_WORK,
            steps=STEPS,
            learning_rate=LEARNING_RATE,
            seed=seed,
            training=str(training),
            held_out=str(held_out),
            threads=1,
        )
        for seed in SEEDS
        for method in _TRAINED
    ]
    with ThreadPoolExecutor(threads) as pool:  # nothing is timed, so all cores may work at once
        for run, loss in zip(runs, pool.map(_train, runs), strict=True):
            losses[run.method.name].append(loss)
            console.print(
                f"{SET}, seed {run.seed}, {run.method.name}: held-out loss {loss.before:.4f} -> "
                f"{loss.after:.4f} in {STEPS} steps"
            )
    return losses


def _train(run: RealRun) -> RealLoss:
    return measure_fresh("bench.agreement_training", run, RealLoss, run.threads)


def _families(found: Agreement) -> Table:
    table = Table("family", title="gradients in fp32 against PEFT's, worst tensor")
    table.add_column("relative difference", justify="right")
    for name, worst in found.families.items():
        table.add_row(name, f"{worst:.1e}")
    return table


def _gradients(found: Agreement) -> Table:
    title = f"{_WORK.model}, {BATCH} examples of {SET}: gradients of all ranks"
    table = Table("method", title=title)
    for name in ("distance from fp64", "cosine with fp64", "cosine with ours in bf16"):
        table.add_column(name, justify="right")
    for row in found.gradients:
        table.add_row(row.method, f"{row.error:.2e}", f"{row.cosine:.6f}", f"{row.cosine_bf16:.6f}")
    return table


def _training(found: Agreement) -> Table:
    title = f"{SET}: held-out loss after {STEPS} steps of {EXAMPLES_PER_STEP} examples"
    table = Table("method", title=title)
    for name in ("before", *(f"seed {seed}" for seed in SEEDS), "mean", "deviation"):
        table.add_column(name, justify="right")
    for name, losses in found.losses.items():
        after = [loss.after for loss in losses]
        numbers = (losses[0].before, *after, mean(after), stdev(after))
        table.add_row(name, *(f"{number:.4f}" for number in numbers))
    return table


def _at_most(claim: str, bound: float, measured: float) -> Claim:
    return Claim(claim=claim, target=f"<= {bound:g}", measured=measured, holds=measured <= bound)
