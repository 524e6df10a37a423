"""What a table of the study says, as words: at equal rounds, and at equal upload bytes."""

from __future__ import annotations

from collections.abc import Sequence

from bench.study.claims import equal_bytes
from bench.study.tables import Point, Row, by_variant, read_table
from edge_sdk.quantities import format_bytes
from simulation.interval import interval

HEADER = (
    *("Variant", "r", "Rounds", "Loss", "Accuracy", "Loss at equal bytes", "Accuracy there"),
    *("Sent", "Fetched", "Adapter memory", "Aggregation error", "Server s"),
)
_LATE = " †"
"""Beside a variant of which at least one seed has no look within the bytes: all had one more."""


def cells(name: str) -> tuple[list[list[str]], str]:
    """Return the lines of a table, the untrained model first, and what its columns compare.

    Losses and accuracies are means with the half width of their 95 % interval over the seeds.
    They are compared at equal rounds only if all runs have as many.
    """
    variants = by_variant(read_table(name))
    able = {x: rows for x, rows in variants.items() if not any(row.is_diverged for row in rows)}
    budget = equal_bytes(able, list(able))
    ends = {row.curve[-1].round_number for rows in able.values() for row in rows}
    rounds = ends.pop() if len(ends) == 1 else None
    start = _looks([next(iter(able.values()))[0].curve[0]])
    untrained = ["untrained", "", "", *(start if rounds else ["", "", *start])]
    lines = [[*untrained, *[""] * (len(HEADER) - len(untrained))]]
    for variant, rows in variants.items():
        lines.append([variant, str(rows[0].r), *_line(rows, rounds, budget)])
    seeds = {len(rows) for rows in variants.values()}
    after = [f"after {rounds} rounds"] if rounds else []
    after.append(f"after {format_bytes(budget)} sent by all devices")
    caption = f"{'/'.join(map(str, sorted(seeds)))} seeds; losses {', and '.join(after)}"
    is_late = any(cell.endswith(_LATE) for line in lines for cell in line)
    return lines, caption + (f";{_LATE} with the first look after that" if is_late else "")


def _line(rows: Sequence[Row], rounds: int | None, budget: int) -> list[str]:
    count = len(rows)
    errors = [x.aggregation_error for x in rows if x.aggregation_error is not None]
    ends = sorted({x.curve[-1].round_number for x in rows})
    return [
        str(ends[0]) if len(ends) == 1 else f"{ends[0]}-{ends[-1]}",
        *_learned(rows, rounds, budget),
        format_bytes(sum(x.uplink_bytes for x in rows) // count),
        format_bytes(sum(x.downlink_bytes for x in rows) // count),
        format_bytes(rows[0].adapter_memory_bytes),
        f"{sum(errors) / len(errors):.1e}" if errors else "-",
        f"{sum(x.server_s for x in rows) / count:.2f}",
    ]


def _learned(rows: Sequence[Row], rounds: int | None, budget: int) -> list[str]:
    diverged = sum(row.is_diverged for row in rows)
    if diverged:
        return [f"{diverged} of {len(rows)} diverged", "", "", ""]
    is_late = not all(x.settled(budget).round_number for x in rows)
    loss, accuracy = _looks([x.settled(budget, may_finish=is_late) for x in rows])
    return [
        *(_looks([x.settled(rounds=rounds) for x in rows]) if rounds else ("", "")),
        *(loss + _LATE * is_late, accuracy),
    ]


def _looks(points: Sequence[Point]) -> list[str]:
    accuracies = [x.accuracy for x in points if x.accuracy is not None]
    return [_text([x.loss for x in points], "{:.3f}"), _text(accuracies, "{:.1%}")]


def _text(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    mean, half = interval(values)
    return form.format(mean) + (f" ± {form.format(half)}" if half is not None else "")
