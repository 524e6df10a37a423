"""Seconds from the start of a server to its being ready, after ``kill -9`` in mid-round.

The state is that of a real round under way: half of its updates are accepted and durable, the
other devices have work. The server is killed and started again over it; in the end every accepted
update must still be there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.fleet import Bodies, Device, enrol, side_by_side
from bench.report import Claim, publish
from bench.server_load import (
    AT_ONCE,
    LLAMA_1B,
    SETTINGS,
    SKETCH_SIZE,
    TASK,
    create_task,
)
from bench.watched_server import WatchedServer, server_command

DEVICES, KILLS = 20, 10
MOST_S = 2.0


def main() -> int:
    """Measure, print the table and the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    console = Console()
    row = measure_recovery()
    table = Table("recovery after kill -9", "")
    for name, value in row.items():
        table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
    console.print(table)
    claims = [
        Claim(
            claim="from the start after kill -9 in mid-round to ready, median seconds",
            target=f"< {MOST_S}",
            measured=row["median_s"],
            holds=row["median_s"] < MOST_S,
        ),
        Claim(
            claim="accepted updates still there",
            target=f"== {row['accepted_before']}",
            measured=row["accepted_after"],
            holds=row["accepted_after"] == row["accepted_before"],
        ),
    ]
    return publish(console, claims, [row], args.json)


def measure_recovery() -> dict[str, Any]:
    """Kill a server in the middle of a round, again and again; return one row of the report."""
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / "state"
        create_task(state, Path(scratch) / "model", LLAMA_1B, DEVICES, DEVICES, 1)
        token = server_command(state, "token", "create")["enrolment_token"]
        with WatchedServer(state, SETTINGS) as server:
            device = _go_half_way(enrol(server.address, token, DEVICES, AT_ONCE))
            before = device.round_status(TASK, 1).accepted
            server.kill()
        ready_s = []
        for _ in range(KILLS):
            with WatchedServer(state, SETTINGS) as server:
                ready_s.append(server.ready_after_s)
                device = device.at(server.address)
                after = device.round_status(TASK, 1).accepted
                server.kill()
    return {
        "kills": KILLS,
        "accepted_before": before,
        "accepted_after": after,
        "fastest_s": min(ready_s),
        "median_s": float(np.median(ready_s)),
        "slowest_s": max(ready_s),
    }


def _go_half_way(fleet: list[Device]) -> Device:
    spec = fleet[0].task(TASK)
    bodies, half = Bodies(spec, SKETCH_SIZE, DEVICES), len(fleet) // 2
    side_by_side(lambda d: d.take_part(spec, SKETCH_SIZE, bodies), fleet[:half], AT_ONCE)
    side_by_side(lambda d: d.take_part(spec, SKETCH_SIZE, None), fleet[half:], AT_ONCE)
    return fleet[0]


if __name__ == "__main__":
    sys.exit(main())
