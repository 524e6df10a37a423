"""The tables of a comparison: methods, rates of multiplication, and time by part."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.train_methods import OURS, TEXTBOOK
from bench.train_speed import Comparison, Series


def print_tables(console: Console, comparison: Comparison) -> None:
    """Print all that was measured on one workload."""
    console.print(_methods(comparison))
    console.print(_rates(comparison))
    parts = _parts(comparison)
    if parts.row_count:
        console.print(parts)


def _methods(comparison: Comparison) -> Table:
    work = comparison.work
    title = f"{work.model}, k = {work.k}, {work.batch_size} x {work.length} tokens, memory in MB"
    table = Table("method", title=title)
    numbers = ("imports", "load s", "load peak", "step peak", "above imports", "of textbook")
    for name in (*numbers, "step s", "tokens/s", "x textbook", "of GEMM rate", "first loss"):
        table.add_column(name, justify="right")
    textbook = comparison.of(TEXTBOOK)
    for series in comparison.series.values():
        fastest = series.fastest
        table.add_row(
            series.method.name,
            _megabytes(series.import_bytes),
            f"{fastest.load_s:.1f}",
            _megabytes(max(run.load_peak_bytes for run in series.runs)),
            _megabytes(series.peak_bytes),
            _megabytes(series.above_imports_bytes),
            f"{series.memory_over(textbook):.2f}",
            f"{series.step_s:.2f}",
            f"{series.tokens_per_s:.0f}",
            f"{series.speed_over(textbook):.2f}",
            f"{comparison.share_of_machine(series.method):.0%}",
            f"{fastest.losses[0]:.4f}",
        )
    return table


def _rates(comparison: Comparison) -> Table:
    table = Table("products", "where", title="products at these shapes, G operations/s")
    for name in ("forward", "input gradient", "both"):
        table.add_column(name, justify="right")
    for rate in comparison.gemm:
        speeds = (rate.forward, rate.input_gradient, rate.both)
        table.add_row(rate.products, rate.where, *(f"{speed / 1e9:.0f}" for speed in speeds))
    return table


def _parts(comparison: Comparison) -> Table:
    """Say where the time of our fastest step goes."""
    table = Table("method", "part", title="time by part of the fastest step")
    table.add_column("s", justify="right")
    table.add_column("share", justify="right")
    for method in OURS:
        if method.name in comparison.series:
            _add_parts(table, comparison.of(method))
    return table


def _add_parts(table: Table, series: Series) -> None:
    parts = series.fastest.parts_s
    if not parts:
        return
    rest = {"norms, rotation, gates, keeping": series.step_s - sum(parts.values())}
    for part, seconds in {**parts, **rest}.items():
        table.add_row(series.method.name, part, f"{seconds:.3f}", f"{seconds / series.step_s:.0%}")


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.0f}"
