"""Our server against Flower's: seconds, bytes and memory per round, and what survives a kill.

Both serve the same fleets on this machine in one run, as real processes over TCP on loopback:
devices that train nothing and return the arrays they got, a little moved. Flower is installed
in an environment of its own at the first run. docs/against_flower.md says what is compared how.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
from rich.console import Console
from rich.table import Table

from bench import flower_environment
from bench.edge_fleet import measure_edge
from bench.flower_cases import CASES, Case, Measured
from bench.flower_fleet import measure_flower
from bench.flower_kill import Survival, kill_edge, kill_flower
from bench.report import Claim, publish

LEAST_TIMES_FASTER = 10.0
MOST_GROWTH = 1.10

_MIB = 2**20

Seen = TypeVar("Seen")


def main() -> int:
    """Measure, print the tables and the claims."""
    args = _arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console(width=150)
    commands = flower_environment.prepare(args.venv)
    console.print(
        f"flwr {flower_environment.VERSION}, Python {flower_environment.python_version()}, "
        f"{os.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}"
    )
    kills = [
        _apart(kill_edge),
        _apart(partial(kill_flower, commands, is_everything_killed=True)),
        _apart(partial(kill_flower, commands, is_everything_killed=False)),
    ]
    console.print(_kill_table(kills))
    pairs = []
    for case in CASES:
        ours = _apart(partial(measure_edge, case))
        flower = _apart(partial(measure_flower, commands, case))
        pairs.append((ours, flower))
        console.print(_round_table([(ours, flower)]))
    console.print(_round_table(pairs))
    rows = [measured.as_row() for pair in pairs for measured in pair]
    rows += [kill.as_row() for kill in kills]
    return publish(console, _claims(pairs, kills), rows, args.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument(
        "--venv",
        type=Path,
        metavar="DIR",
        default=flower_environment.default_folder(),
        help="environment of Flower, made if it is not there (default: %(default)s)",
    )
    return parser.parse_args()


def _apart(measure: Callable[[Path], Seen]) -> Seen:
    """Measure in a folder of its own, which is removed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        return measure(Path(scratch))


def _round_table(pairs: Sequence[tuple[Measured, Measured]]) -> Table:
    table = Table("case", "server", title="per round; bytes of one device; memory of the server")
    for name in ("seconds", "of rounds", "down MB", "up MB", "idle MiB", "round 1 MiB", "peak MiB"):
        table.add_column(name, justify="right")
    for pair in pairs:
        for measured in pair:
            seconds = measured.between_results_s
            table.add_row(
                measured.case,
                measured.server,
                "> limit" if measured.round_s is None else f"{measured.round_s:.2f}",
                f"{len(seconds)}{' (cut off)' if measured.is_cut_off else ''}",
                _megabytes(measured.down_bytes),
                _megabytes(measured.up_bytes),
                f"{measured.idle_bytes / _MIB:.0f}",
                f"{measured.first_bytes / _MIB:.0f}",
                f"{measured.peak_bytes / _MIB:.0f}",
            )
    return table


def _megabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:.3f}"


def _kill_table(kills: Sequence[Survival]) -> Table:
    title = "kill -9 in round 2, when half of its updates had come; started again 2 s later"
    table = Table("server", "killed", title=title)
    for name in ("finished rounds", "updates kept", "answers after s", "next result s", "verdict"):
        table.add_column(name, justify="right")
    for kill in kills:
        after = kill.next_result_s
        table.add_row(
            kill.server,
            kill.killed,
            f"{kill.finished_before}, then {kill.finished_after} of {kill.rounds}",
            f"{kill.counted} of {kill.accepted}",
            f"{kill.restart_s:.1f}",
            "never" if after is None else f"{after:.1f}",
            kill.verdict + (", bit-equal" if kill.is_exact else ""),
        )
    return table


def _claims(pairs: Sequence[tuple[Measured, Measured]], kills: Sequence[Survival]) -> list[Claim]:
    by_name = {ours.case: (ours, flower) for ours, flower in pairs}
    claims = [_faster(*by_name[case.name]) for case in CASES if case.model is CASES[0].model]
    few, many = (by_name[case.name][0] for case in _growing())
    growth = many.peak_bytes / few.peak_bytes
    claims.append(
        Claim(
            claim=f"our memory at {many.devices} devices in that at {few.devices}",
            target=f"<= {MOST_GROWTH:.2f}",
            measured=growth,
            holds=growth <= MOST_GROWTH,
        )
    )
    ours = kills[0]
    is_kept = ours.goes_on and ours.counted == ours.accepted and bool(ours.is_exact)
    claims.append(
        Claim(
            claim="our accepted updates lost by kill -9; the run goes on, bit-equal",
            target="0, yes",
            measured=float(ours.accepted - ours.counted),
            holds=is_kept,
        )
    )
    return claims


def _faster(ours: Measured, flower: Measured) -> Claim:
    times = (flower.round_s or 0.0) / (ours.round_s or float("inf"))
    return Claim(
        claim=f"fixed time of a round, Flower's over ours ({ours.case})",
        target=f">= {LEAST_TIMES_FASTER:.0f}",
        measured=times,
        holds=times >= LEAST_TIMES_FASTER,
    )


def _growing() -> tuple[Case, Case]:
    """Return the two cases that differ in nothing but the number of devices."""
    few, many = (case for case in CASES if case.name.startswith("same bytes"))
    return few, many


if __name__ == "__main__":
    sys.exit(main())
