"""A simulated fleet of 100,000 devices over 1,000 rounds: time, memory, and what it did.

Once on a server in memory, with 100 devices a round; once on the server's own rules, database and
files, with 20.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.report import Claim, json_path, publish

CONFIG = Path(__file__).with_suffix(".toml")
MOST_S = 600.0
MOST_BYTES = 2e9


def main() -> int:
    """Run both, print what the fleets did, and the claims."""
    path, console = json_path(__doc__), Console(width=140)
    rows = [_run(variant) for variant in ("memory", "server")]
    console.print(_table(rows))
    claims = [claim for row in rows for claim in _claims(row)]
    return publish(console, claims, rows, path)


def _run(variant: str) -> dict[str, Any]:
    """Run one variant of the file in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        began = time.perf_counter()
        watched = (
            "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
            "runpy.run_module('simulation.sweep', run_name='__main__')\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
        )
        command = [sys.executable, "-c", watched, "sweep", str(CONFIG), f"{variant}-0", scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - began
        result = json.loads((out / f"{variant}-0.json").read_text("utf-8"))
    durations = sorted(row["ended_at"] - row["began_at"] for row in result["rounds"])
    return {
        "variant": variant,
        "seconds": seconds,
        "peak_rss_bytes": int(done.stdout.split()[-1]),
        "round_median_s": durations[len(durations) // 2],
        "round_p99_s": durations[int(0.99 * len(durations))],
        **result["summary"],
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("", *(row["variant"] for row in rows))
    for name in (
        *("seconds", "peak_rss_bytes", "rounds", "hours", "assigned", "accepted", "dropped"),
        *("late", "uplink_bytes", "downlink_bytes", "trained_ranks", "oldest_rank"),
        *("round_median_s", "round_p99_s"),
    ):
        table.add_row(name, *(f"{row[name]:,.6g}" for row in rows))
    return table


def _claims(row: dict[str, Any]) -> list[Claim]:
    name = f"100,000 devices, {row['rounds']:,} rounds, {row['variant']}"
    return [
        Claim(
            claim=f"{name}: seconds",
            target=f"<= {MOST_S:g}",
            measured=row["seconds"],
            holds=row["seconds"] <= MOST_S,
        ),
        Claim(
            claim=f"{name}: peak memory, bytes",
            target=f"<= {MOST_BYTES:g}",
            measured=row["peak_rss_bytes"],
            holds=row["peak_rss_bytes"] <= MOST_BYTES,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
