"""How the command line shows things: tables for people, JSON for machines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

import msgspec
from rich.console import Console
from rich.table import Table

from edge_sdk.quantities import format_bytes
from server.operation.reports import DeviceReport, RoundReport, TaskReport
from server.registry.evaluating import Evaluation
from server.registry.registry_reports import VersionReport
from server.storage.registry_store import PointerRow

_PIPE_COLUMNS = 1000


def line(text: str, facts: object, is_json: bool) -> None:
    """Print one line at once: the text, or the facts as JSON."""
    sys.stdout.write((msgspec.json.encode(facts).decode() if is_json else text) + "\n")
    sys.stdout.flush()


def tasks(reports: Sequence[TaskReport], is_json: bool) -> None:
    """Print all tasks."""
    if is_json:
        line("", reports, is_json)
        return
    table = _table("task", "base model", "r", "rounds closed", "adapter version")
    for report in reports:
        closed = f"{report.closed} of {report.rounds}"
        _add(table, report.name, report.model, report.r, closed, report.adapter_version)
    _show(table)


def rounds(reports: Sequence[RoundReport], is_json: bool) -> None:
    """Print the rounds of a task, one row per device."""
    if is_json:
        line("", reports, is_json)
        return
    table = _table("round", "state", "device", "k", "loss", "up", "down", "seconds")
    for report in reports:
        for i, device in enumerate(report.devices):
            first = i == 0
            number, state = (report.round_number, report.state) if first else ("", "")
            _add(table, number, state, *_device_cells(device))
        if not report.devices:
            _add(table, report.round_number, report.state)
    _show(table)


def versions(reports: Sequence[VersionReport], is_json: bool) -> None:
    """Print the adapter versions of a task."""
    if is_json:
        line("", reports, is_json)
        return
    table = _table(
        *("version", "round", "from", "updates", "loss", "used by", "accepted", "change", "size"),
        *("made at (UTC)", "SHA-256"),
    )
    for report in reports:
        made_at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(report.created_at))
        _add(
            table,
            report.version,
            report.round_number,
            "" if report.parent_version is None else report.parent_version,
            report.updates,
            "" if report.mean_loss is None else f"{report.mean_loss:.4f}",
            _users(report),
            *_evaluation_cells(report.evaluation),
            format_bytes(report.size_bytes),
            made_at,
            report.digest[:12],
        )
    _show(table)


def channel(task: str, row: PointerRow, text: str, is_json: bool) -> None:
    """Print what devices use now."""
    facts = {name: value for name, value in asdict(row).items() if name != "signed"}
    line(f"devices of {task} use {text}", facts, is_json)


def _users(report: VersionReport) -> str:
    words = {
        "stable": "stable, following" if report.follows_latest else "stable",
        "canary": f"canary of {report.canary_share:.3g}",
    }
    return ", ".join(words.get(name, name) for name in report.channels)


def settings(rows: Sequence[tuple[str, object, str]]) -> None:
    """Print every setting: its name, value and origin."""
    table = _table("setting", "value", "from")
    for row in rows:
        _add(table, *row)
    _show(table)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print any rows under their headings."""
    made = _table(*columns)
    for row in rows:
        _add(made, *row)
    _show(made)


def _evaluation_cells(found: Evaluation | None) -> tuple[str, str]:
    """Return how many devices use a version of those that tried it, and what it changed there."""
    if found is None:
        return "", ""
    change = found.loss_after - found.loss_before
    return f"{found.accepted} of {found.devices}", f"{change:+.4f}"


def _device_cells(device: DeviceReport) -> tuple[object, ...]:
    down = format_bytes(device.download_bytes)
    if device.upload_bytes is None or device.loss is None or device.seconds is None:
        return (device.name, device.k, "", "", down, "")
    loss, seconds = f"{device.loss:.4f}", f"{device.seconds:.1f}"
    return (device.name, device.k, loss, format_bytes(device.upload_bytes), down, seconds)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _add(table: Table, *cells: object) -> None:
    table.add_row(*(str(cell) for cell in cells))


def _show(table: Table) -> None:
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_COLUMNS  # nothing is cut off where another program reads
    console.print(table, soft_wrap=not console.is_terminal)
