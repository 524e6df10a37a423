"""What an app feels of the agent it embeds: frame times, throughput, memory, time to import.

A host app draws 60 frames a second, each with 4 ms of work, and then computes as fast as it can on
one core: before there is an agent, and while the agent trains SmolLM2-135M beside it on all cores
of the machine, in turns with training paused, all in one process. The owner's rules about other
programs are off: the agent trains all the time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.report import Claim, publish
from bench.watched_server import WatchedServer, server_command
from demo.smollm2 import smollm2_folder

MOST_P99, LEAST_THROUGHPUT = 1.25, 0.90
MOST_ADDED_BYTES, MOST_IMPORT_S = 40e6, 0.100
MISSED_SHARE = 0.5
"""A second in which less than half of the usual work was done is a missed one."""

_IMPORTS = 7
STEPS = "3000"
"""Of the round: more than are taken meanwhile, and few enough to be in reach of its deadline."""


def main() -> int:
    """Measure, print the table and the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--turns", type=int, default=3, help="with training, and as many without")
    parser.add_argument("--seconds", type=int, default=10, help="of frames, and of work, a turn")
    args = parser.parse_args()
    console = Console()
    facts = _measure(args.turns, args.seconds)
    rows = [_row(facts["turns"], name) for name in ("no agent", "paused", "training")]
    table = Table("", "no agent", "training paused", "training")
    for name in rows[0]:
        table.add_row(name, *(f"{row[name]:.4g}" for row in rows))
    console.print(table)
    return publish(
        console, _claims(rows[0], rows[2], facts, _import_s()), [*rows, facts], args.json
    )


def _measure(turns: int, seconds: int) -> dict[str, Any]:
    model = smollm2_folder()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        words = ["task", "create", "host", "--model", str(model), "--rank", "16", "--seed", "1"]
        words += ["--sketch-sizes", "16", "--rounds", "1", "--cohort-size", "1"]
        server_command(scratch / "server", *words, "--local-steps", STEPS, "--deadline", "86400")
        token = server_command(scratch / "server", "token", "create")["enrolment_token"]
        with WatchedServer(scratch / "server", {}) as server:
            settings = {
                "server": server.address,
                "token": token,
                "data": str(_write_data(scratch / "data.jsonl")),
                "model": str(model),
                "state": str(scratch / "device"),
                "threads": os.cpu_count(),
                "turns": turns,
                "seconds": seconds,
            }
            done = subprocess.run(
                [sys.executable, "-m", "bench.host_app"],
                input=json.dumps(settings),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _write_data(path: Path) -> Path:
    lines = [
        json.dumps({"prompt": f"Note {n}: ", "completion": f"remember the number {n}. " * 8})
        for n in range(64)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _row(turns: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    chosen = [turn for turn in turns if turn["with"] == name]
    frames_ms = 1000 * np.array([x for turn in chosen for x in turn["frames"]])
    work = np.array([x for turn in chosen for x in turn["work"]])
    return {
        "frame, median ms": float(np.median(frames_ms)),
        "frame, p99 ms": float(np.percentile(frames_ms, 99)),
        "frame, worst ms": float(frames_ms.max()),
        "frames later than the next one, %": float(100 * np.mean(frames_ms > 1000 / 60)),
        "work a second, median": float(np.median(work)),
        "work in the worst second": float(work.min()),
        "training steps": float(sum(turn["steps"] for turn in chosen)),
    }


def _import_s() -> float:
    """Return the median seconds of an import in a fresh interpreter."""
    script = "import time; t = time.perf_counter(); import edge_sdk; edge_sdk.EdgeClient; "
    script += "print(time.perf_counter() - t)"
    taken = [
        float(subprocess.check_output([sys.executable, "-c", script])) for _ in range(_IMPORTS)
    ]
    return float(np.median(taken))


def _claims(
    alone: dict[str, float], training: dict[str, float], facts: dict[str, Any], import_s: float
) -> list[Claim]:
    slower = training["frame, p99 ms"] / alone["frame, p99 ms"]
    kept = training["work a second, median"] / alone["work a second, median"]
    worst = training["work in the worst second"] / alone["work a second, median"]
    added = float(facts["added_bytes"])
    return [
        _claim("p99 frame time, of that without training", slower, "<=", MOST_P99),
        _claim("throughput, of that without training", kept, ">=", LEAST_THROUGHPUT),
        _claim("worst second, of the usual work", worst, ">=", MISSED_SHARE),
        _claim("MB of memory added to the host process", added / 1e6, "<=", MOST_ADDED_BYTES / 1e6),
        _claim("import of edge_sdk in the host, ms", 1e3 * facts["import_s"], "<=", 100.0),
        _claim("import of edge_sdk and EdgeClient, ms", 1e3 * import_s, "<=", 1e3 * MOST_IMPORT_S),
        _claim("torch, NumPy or requests in the host process", len(facts["heavy"]), "<=", 0.0),
        _claim("training steps done meanwhile", training["training steps"], ">=", 1.0),
    ]


def _claim(text: str, measured: float, sign: str, bound: float) -> Claim:
    holds = measured <= bound if sign == "<=" else measured >= bound
    return Claim(claim=text, target=f"{sign} {bound:g}", measured=measured, holds=holds)


if __name__ == "__main__":
    sys.exit(main())
