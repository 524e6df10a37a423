"""The study's tables for people: at equal rounds, and at equal upload bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from bench.study.claims import equal_bytes
from bench.study.tables import Point, Row, by_variant, read_table
from edge_sdk.quantities import format_bytes
from simulation.interval import interval


def print_tables(console: Console, names: Sequence[str]) -> None:
    """Print every table; losses with the half width of their 95 % interval."""
    for name in names:
        variants = by_variant(read_table(name))
        console.print(_table(name, variants))


def _table(name: str, variants: Mapping[str, Sequence[Row]]) -> Table:
    table = Table(
        *("variant", "seeds", "r", "loss", "accuracy", "at equal bytes", "accuracy there"),
        *("sent", "fetched", "adapter memory", "aggregation error", "server s"),
        title=name,
    )
    able = [x for x, rows in variants.items() if not any(row.is_diverged for row in rows)]
    budget = equal_bytes(variants, able)
    for variant, rows in variants.items():
        count = len(rows)
        diverged = sum(row.is_diverged for row in rows)
        equal = [row.settled(budget) for row in rows]
        errors = [x.aggregation_error for x in rows if x.aggregation_error is not None]
        table.add_row(
            variant,
            str(count),
            str(rows[0].r),
            *(
                _looks([x.settled() for x in rows])
                if not diverged
                else (f"{diverged} diverged", "")
            ),
            *(_looks(equal) if not diverged else ("", "")),
            format_bytes(sum(x.uplink_bytes for x in rows) // count),
            format_bytes(sum(x.downlink_bytes for x in rows) // count),
            format_bytes(rows[0].adapter_memory_bytes),
            f"{sum(errors) / len(errors):.1e}" if errors else "-",
            f"{sum(x.server_s for x in rows) / count:.2f}",
        )
    table.caption = f"equal bytes: {format_bytes(budget)} sent"
    return table


def _looks(points: Sequence[Point]) -> tuple[str, str]:
    accuracies = [x.accuracy for x in points if x.accuracy is not None]
    return _text([x.loss for x in points], "{:.3f}"), _text(accuracies, "{:.1%}")


def _text(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    mean, half = interval(values)
    return form.format(mean) + (f" ± {form.format(half)}" if half is not None else "")
