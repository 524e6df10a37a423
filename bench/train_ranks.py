"""What a rank costs: memory and bytes sent against k, beside what the planner says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.report import Claim
from bench.train_masked import workload
from bench.train_methods import OURS_NF4, SMOLLM2, Work, adapter_of, first_ranks
from bench.train_once import Measured
from bench.train_speed import Plan, run_once
from edge_sdk.compute.execution import Execution
from edge_sdk.device import probe
from edge_sdk.planning.cost import Budget, Machine, cost_of
from edge_sdk.planning.microbenchmark import measure_rates
from edge_sdk.wire.payload import encode

SKETCH_SIZES = (1, 4, 16, 64)
MOST_ERROR, MOST_UNDER = 0.12, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRow:
    """One sketch size.

    Attributes:
        work: The workload.
        run: What was measured.
        predicted_bytes: Peak memory the planner says.
        update_bytes: What a device sends after a round.
    """

    work: Work
    run: Measured
    predicted_bytes: int
    update_bytes: int

    @property
    def error(self) -> float:
        """Relative error of the prediction; below zero it says too little."""
        return self.predicted_bytes / self.run.whole_peak_bytes - 1


def measure_ranks(console: Console, plan: Plan) -> list[RankRow]:
    """Train at every sketch size, once each, and print the table."""
    report = probe()
    rates = measure_rates(report, plan.threads)
    machine = Machine(has_native_bf16=report.has_native_bf16, rates=rates)
    rows = [_measure(replace(SMOLLM2, k=k), machine, plan) for k in SKETCH_SIZES]
    console.print(_table(rows))
    return rows


def rank_claims(rows: Sequence[RankRow]) -> Iterator[Claim]:
    """Yield how well the planner knew."""
    named = {
        "worst error": (MOST_ERROR, max(abs(row.error) for row in rows)),
        "most under": (MOST_UNDER, max(-row.error for row in rows)),
    }
    for name, (most, measured) in named.items():
        yield Claim(
            claim=f"{OURS_NF4.name}: predicted peak memory against k, {name}",
            target=f"<= {most:.0%}",
            measured=measured,
            holds=measured <= most,
        )


def json_rows(rows: Sequence[RankRow]) -> list[dict[str, Any]]:
    """Return everything, for the JSON file."""
    return [{**asdict(row), "error": row.error} for row in rows]


def _measure(work: Work, machine: Machine, plan: Plan) -> RankRow:
    run = run_once(OURS_NF4, work, plan)
    return RankRow(
        work=work,
        run=run,
        predicted_bytes=_predicted_bytes(work, machine),
        update_bytes=len(encode(first_ranks(work), adapter_of(work).wire_dtype)),
    )


def _predicted_bytes(work: Work, machine: Machine) -> int:
    execution = Execution(
        quantization="nf4",
        products="wide",
        micro_batch=work.batch_size,
        recomputed_blocks=0,
        length=work.length,
        trained_targets=work.shape.default_targets,
        k=work.k,
    )
    unlimited = Budget(memory_bytes=1 << 40)
    return cost_of(workload(work), machine, unlimited, execution).need.total


def _table(rows: Sequence[RankRow]) -> Table:
    table = Table("k", title=f"{SMOLLM2.model}, {OURS_NF4.name}: what ranks cost, in MB")
    for name in ("peak", "above imports", "predicted", "error", "update", "tokens/s"):
        table.add_column(name, justify="right")
    for row in rows:
        run = row.run
        table.add_row(
            str(row.work.k),
            f"{run.whole_peak_bytes / 1e6:.0f}",
            f"{(run.whole_peak_bytes - run.import_bytes) / 1e6:.0f}",
            f"{row.predicted_bytes / 1e6:.0f}",
            f"{row.error:+.1%}",
            f"{row.update_bytes / 1e6:.2f}",
            f"{run.tokens / min(run.step_s):.0f}",
        )
    return table
