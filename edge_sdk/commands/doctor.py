"""``edge-sdk doctor``: try what usually fails, and print the fix for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_sdk.doctor.finding import Finding
from edge_sdk.doctor.folder_checks import check_folder
from edge_sdk.doctor.server_checks import check_server
from edge_sdk.doctor.trial import try_library

LIBRARIES = ("torch", "cuda", "kernels", "bf16", "nf4", "onnx")
"""Each is tried in a process of its own, and has 90 s."""

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


def run_doctor(
    console: Console, folder: Path, server: str | None = None, *, as_json: bool = False
) -> list[Finding]:
    """Run every check; change nothing, print a table unless JSON was asked for.

    Args:
        console: Where the table goes.
        folder: The state folder.
        server: Base address; None takes the server this device joined.
        as_json: The caller prints what is returned instead.
    """
    findings = [*check_folder(folder), *check_server(folder, server)]
    findings += [try_library(name) for name in LIBRARIES]
    if not as_json:
        _print(console, findings)
    return findings


def as_builtins(findings: list[Finding]) -> dict[str, Any]:
    """Return findings as the JSON that ``--json`` prints."""
    return {"is_healthy": is_healthy(findings), "checks": msgspec.to_builtins(findings)}


def is_healthy(findings: list[Finding]) -> bool:
    """Say whether no check failed."""
    return all(finding.outcome != "fail" for finding in findings)


def _print(console: Console, findings: list[Finding]) -> None:
    table = Table("check", "", "found")
    for finding in findings:
        style = _STYLES[finding.outcome]
        outcome = f"[{style}]{finding.outcome}[/{style}]"
        table.add_row(finding.check, outcome, escape(finding.found))
    console.print(table)
    for finding in findings:
        if finding.fix and finding.outcome in ("warn", "fail"):
            console.print(f"{finding.check}: {finding.fix}", markup=False, highlight=False)
