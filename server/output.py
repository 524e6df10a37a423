"""How the command line shows things: tables for people, JSON for machines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from edge_sdk.quantities import format_bytes
from server.reports import DeviceReport, RoundReport, TaskReport
from server.store import AdapterRow


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


def adapters(rows: Sequence[AdapterRow], is_json: bool) -> None:
    """Print the adapter versions of a task."""
    if is_json:
        line("", rows, is_json)
        return
    table = _table("version", "round", "size", "made at (UTC)", "SHA-256")
    for row in rows:
        made_at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row.created_at))
        _add(
            table,
            row.version,
            row.round_number,
            format_bytes(row.size_bytes),
            made_at,
            row.digest[:12],
        )
    _show(table)


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
    console.print(table, soft_wrap=not console.is_terminal)
