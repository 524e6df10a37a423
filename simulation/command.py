"""``edge-sdk simulate``: run what a file describes, and show what the runs came to."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edge_sdk.quantities import format_bytes
from simulation.config import RunConfig, read_runs
from simulation.interval import interval
from simulation.plot import Curve, check_plot, plot_curves
from simulation.results import Result, RoundRow, Summary
from simulation.run import run_simulation
from simulation.sweep import run_apart


def run_simulations(options: argparse.Namespace, console: Console) -> list[Any]:
    """Run a file; print for people unless JSON was asked for; return results for machines.

    Raises:
        ConfigError: The file is not what it should be, or results there are of another one.
    """
    runs = read_runs(options.config)
    if options.plot:
        check_plot(options.plot)
    out: Path = options.out or Path(options.config.stem)
    if options.jobs > 1 or options.ray:
        run_apart(options.config, runs, out, options.jobs, options.ray)
    results = {name: _run(name, config, out, options, console) for name, config in runs.items()}
    if not options.json:
        _print(results, console)
        console.print(f"a file for each run is in {out}")
    if options.plot:
        _plot(results, options.config.stem, options.plot)
    return [msgspec.to_builtins(x.summary) | {"run": name} for name, x in results.items()]


def _run(
    name: str, config: RunConfig, out: Path, options: argparse.Namespace, console: Console
) -> Result:
    path = out / f"{name}.json"
    if options.json:
        return run_simulation(config, path)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(name, total=config.rounds)

        def show(row: RoundRow) -> None:
            progress.update(bar, completed=row.number)

        return run_simulation(config, path, show)


def _print(results: Mapping[str, Result], console: Console) -> None:
    """Print a row for each variant, its seeds together: what it learned, what the fleet did."""
    variants: dict[str, list[Summary]] = defaultdict(list)
    for name, result in results.items():
        variants[name.rpartition("-")[0]].append(result.summary)
    learned = Table(
        *("run", "seeds", "held-out loss", "accuracy", "aggregation error"),
        title="What was learned",
    )
    fleet = Table(
        *("run", "rounds", "min", "sent", "fetched", "lost", "late", "ranks", "cold"),
        title="What the fleet did",
    )
    for name, found in variants.items():
        if any(x.heldout_loss is not None for x in found):
            learned.add_row(*_learned_row(name, found))
        fleet.add_row(*_fleet_row(name, found))
    if learned.row_count:
        console.print(learned)
    console.print(fleet)
    console.print(
        "min: virtual minutes of a round; lost, late: of the devices that got work; ranks: trained "
        "in a round; cold: rounds that a rank was left alone, at most"
    )


def _plot(results: Mapping[str, Result], title: str, path: Path) -> None:
    variants: dict[str, list[Curve]] = defaultdict(list)
    for name, result in results.items():
        looks = [
            (x.total_uplink_bytes, x.evaluation.loss)
            for x in result.rounds
            if x.evaluation is not None
        ]
        variants[name.rpartition("-")[0]].append(looks)
    plot_curves(variants, title, path)


def _learned_row(name: str, found: Sequence[Summary]) -> list[str]:
    diverged = sum(x.is_diverged for x in found)
    return [
        name + (f" ({diverged} diverged)" if diverged else ""),
        str(len(found)),
        _with_interval([x.heldout_loss for x in found], "{:.3f}"),
        _with_interval([x.accuracy for x in found], "{:.1%}"),
        _with_interval([x.aggregation_error for x in found], "{:.2g}"),
    ]


def _fleet_row(name: str, found: Sequence[Summary]) -> list[str]:
    count = len(found)
    assigned = max(1, sum(x.assigned for x in found))
    return [
        name,
        " ".join(sorted({f"{x.rounds:,}" for x in found})),
        f"{sum(60 * x.hours / max(1, x.rounds) for x in found) / count:.1f}",
        format_bytes(sum(x.uplink_bytes for x in found) // count),
        format_bytes(sum(x.downlink_bytes for x in found) // count),
        f"{sum(x.dropped for x in found) / assigned:.1%}",
        f"{sum(x.late for x in found) / assigned:.1%}",
        f"{sum(x.trained_ranks for x in found) / count:.1%}",
        str(max(x.oldest_rank for x in found)),
    ]


def _with_interval(values: Sequence[float | None], form: str) -> str:
    found = [x for x in values if x is not None]
    if not found:
        return "-"
    mean, half = interval(found)
    return form.format(mean) + (f" ± {form.format(half)}" if half is not None else "")
