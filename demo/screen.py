"""What the demo shows: tables, and a live one while the rounds run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from demo.trec import Split
from edge_sdk.quantities import format_bytes

Show = Callable[[str, Mapping[str, Any], float], None]


def data_table(split: Split) -> Table:
    """Return a table of who has how many questions of which type."""
    types = sorted({label for device in split.devices.values() for label in device.labels})
    table = Table("device", *types, title="Private questions of each device, by type")
    for name, device in split.devices.items():
        table.add_row(name, *(str(device.labels.get(label, 0) or "·") for label in types))
    return table


@contextmanager
def live_rounds(console: Console, devices: Sequence[str], rounds: int) -> Iterator[Show]:
    """Show one line per round, growing as devices report; plain lines where nobody watches."""
    seen: dict[int, dict[str, Mapping[str, Any]]] = {}
    finished: dict[int, float] = {}

    def record(name: str, event: Mapping[str, Any], seconds: float) -> int:
        number = int(event["round_number"])
        seen.setdefault(number, {})[name] = event
        if len(seen[number]) == len(devices):
            finished[number] = seconds
        return number

    def row(number: int) -> list[str]:
        return _row(number, rounds, devices, seen[number], finished.get(number))

    if not console.is_terminal:

        def show_line(name: str, event: Mapping[str, Any], seconds: float) -> None:
            number = record(name, event, seconds)
            if number in finished:
                console.print("  ".join(cell.rjust(8) for cell in row(number)))

        console.print("  ".join(cell.rjust(8) for cell in ("round", *devices, "up", "down", "s")))
        yield show_line
        return

    with Live(console=console, auto_refresh=False) as live:

        def show_table(name: str, event: Mapping[str, Any], seconds: float) -> None:
            record(name, event, seconds)
            table = Table("round", *(f"{name}\nk, loss" for name in devices), "up", "down", "s")
            for number in sorted(seen):
                table.add_row(*row(number))
            live.update(table, refresh=True)

        yield show_table


def _row(
    number: int,
    rounds: int,
    devices: Sequence[str],
    events: Mapping[str, Mapping[str, Any]],
    seconds: float | None,
) -> list[str]:
    cells = [
        f"{events[name]['k']:>2}, {events[name]['loss']:.2f}" if name in events else "…"
        for name in devices
    ]
    up = sum(event["upload_bytes"] for event in events.values())
    down = sum(event["download_bytes"] for event in events.values())
    return [
        f"{number}/{rounds}",
        *cells,
        format_bytes(up),
        format_bytes(down),
        f"{seconds:.0f}" if seconds is not None else "",
    ]


def result_table(heldout: Mapping[str, Any]) -> Table:
    """Return held-out loss and accuracy before and after."""
    title = f"{heldout['examples']} held-out questions no device trained on"
    table = Table("", "before", "after", "change", title=title)
    before, after = heldout["loss_before"], heldout["loss_after"]
    table.add_row("loss", f"{before:.3f}", f"{after:.3f}", f"{after / before - 1:+.0%}")
    before, after = heldout["accuracy_before"], heldout["accuracy_after"]
    points = f"{100 * (after - before):+.1f} points"
    table.add_row("accuracy", f"{before:.1%}", f"{after:.1%}", points)
    return table


def fleet_table(
    devices: Sequence[Mapping[str, Any]], budgets: Mapping[str, int], full_rank_bytes: int
) -> Table:
    """Return what each device spent, beside what full rank would have cost it."""
    table = Table("device", "budget", "peak memory", "k", title="What each device spent")
    for title in ("sent", "received", "both, of full rank"):
        table.add_column(title, justify="right")
    all_sent = all_received = all_full = 0
    for device in devices:
        sent, received = sum(device["upload_bytes"]), sum(device["download_bytes"])
        full = 2 * full_rank_bytes * len(device["upload_bytes"])
        table.add_row(
            device["name"],
            format_bytes(budgets[device["name"]]),
            format_bytes(device["peak_rss_bytes"]),
            str(device["k"]),
            format_bytes(sent),
            format_bytes(received),
            f"{(sent + received) / full:.0%}",
        )
        all_sent, all_received, all_full = all_sent + sent, all_received + received, all_full + full
    share = f"{(all_sent + all_received) / all_full:.0%}"
    table.add_section()
    table.add_row("all", "", "", "", format_bytes(all_sent), format_bytes(all_received), share)
    return table
