"""What a table of the study says, as words: at equal rounds, and at equal upload bytes."""

from __future__ import annotations

from collections.abc import Sequence

from bench.study.claims import equal_bytes
from bench.study.tables import Point, Row, by_variant, read_table
from edge_sdk.quantities import format_bytes
from simulation.interval import interval

HEADER = (
    *("Variant", "r", "Loss", "Accuracy", "Loss at equal bytes", "Accuracy there"),
    *("Sent", "Fetched", "Adapter memory", "Aggregation error", "Server s"),
)
_NO_LOOK = "no look by then"
"""A variant of which at least one seed has no look within the bytes."""


def cells(name: str) -> tuple[list[list[str]], str]:
    """Return the lines of a table, the untrained model first, and what its columns compare.

    Losses and accuracies are means with the half width of their 95 % interval over the seeds.
    """
    variants = by_variant(read_table(name))
    able = {x: rows for x, rows in variants.items() if not any(row.is_diverged for row in rows)}
    budget = equal_bytes(able, list(able))
    rounds = min(row.curve[-1].round_number for rows in able.values() for row in rows)
    start = [next(iter(able.values()))[0].curve[0]]
    lines = [["untrained", "", *_looks(start), *[""] * (len(HEADER) - 4)]]
    for variant, rows in variants.items():
        lines.append([variant, str(rows[0].r), *_line(rows, rounds, budget)])
    seeds = {len(rows) for rows in variants.values()}
    return lines, (
        f"{'/'.join(map(str, sorted(seeds)))} seeds; losses after {rounds} rounds, and after "
        f"{format_bytes(budget)} sent by all devices"
    )


def _line(rows: Sequence[Row], rounds: int, budget: int) -> list[str]:
    diverged = sum(row.is_diverged for row in rows)
    if diverged:
        learned = [f"{diverged} of {len(rows)} diverged", "", "", ""]
    else:
        there = [x.settled(budget) for x in rows]
        has_begun = all(x.round_number for x in there)
        learned = [
            *_looks([x.settled(rounds=rounds) for x in rows]),
            *(_looks(there) if has_begun else [_NO_LOOK, ""]),
        ]
    errors = [x.aggregation_error for x in rows if x.aggregation_error is not None]
    count = len(rows)
    return [
        *learned,
        format_bytes(sum(x.uplink_bytes for x in rows) // count),
        format_bytes(sum(x.downlink_bytes for x in rows) // count),
        format_bytes(rows[0].adapter_memory_bytes),
        f"{sum(errors) / len(errors):.1e}" if errors else "-",
        f"{sum(x.server_s for x in rows) / count:.2f}",
    ]


def _looks(points: Sequence[Point]) -> list[str]:
    accuracies = [x.accuracy for x in points if x.accuracy is not None]
    return [_text([x.loss for x in points], "{:.3f}"), _text(accuracies, "{:.1%}")]


def _text(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    mean, half = interval(values)
    return form.format(mean) + (f" ± {form.format(half)}" if half is not None else "")
