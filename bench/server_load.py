"""A fleet of made-up devices against one real server: updates per second, latency, CPU, memory.

One ``edge-server serve`` with its embedded storage (SQLite and a folder) for each size of the
fleet, in a process of its own; devices are threads of this process, at most 32 of them talking at
once, over real HTTP on loopback. Every device has its own enrolment and Ed25519 key. In a round
each checks in, downloads its slice and uploads an update of sketch size k=8; the round closes when
the last one is in. Small fleets run as many rounds as it takes to send 100 updates, so that the
memory of each server had the same chance to grow.

The adapter is that of Llama-3.2-1B at r=16, on the default targets of the product (all seven linear
layers of each of 16 blocks: attention and MLP), in bf16 on the wire: 11.3 MB per update. Devices
share 1,000 different updates, which bounds the disk, not the work: a repeated one is received,
hashed, checked, synced and folded like any other.

A device that is told the server is busy comes back after as long as it was told, as real ones do.

Folding is measured apart, see :mod:`bench.fold_cost`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from rich.console import Console
from rich.table import Table

from bench.fleet import Bodies, Device, Turn, enrol, side_by_side
from bench.fold_cost import measure_fold
from bench.report import Claim, publish
from bench.watched_server import WatchedServer, server_command
from edge_sdk.wire.task import TaskSpec

LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
RANK, SKETCH_SIZE, WIRE_DTYPE = 16, 8, "bf16"
DEVICES = (10, 100, 1_000, 5_000)
AT_ONCE = 32
DISTINCT_UPDATES = 1_000
FEWEST_UPDATES = 100
MOST_GROWTH = 0.10
MOST_PASSES = 3.0

SETTINGS = {
    "EDGE_SERVER_DEVICE_REQUESTS_PER_MIN": "1000000",
    "EDGE_SERVER_ENTRANCE_REQUESTS_PER_MIN": "1000000",
    "EDGE_SERVER_LOG_LEVEL": "warning",
}
TASK = "load"
_LOOK_S = 0.02
_SETTLED_S = 1.0


def main() -> int:
    """Measure, print the tables and the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--devices", type=_sizes, default=DEVICES, metavar="N,N,...")
    parser.add_argument(
        "--most-updates", type=int, metavar="N", help="in one round; other devices only check in"
    )
    args = parser.parse_args()
    console = Console()
    folds = [measure_fold(LLAMA_1B, RANK, SKETCH_SIZE, dtype) for dtype in ("fp32", "bf16")]
    console.print(_fold_table(folds))
    rows = []
    for devices in args.devices:
        rows.append(measure_load(devices, min(devices, args.most_updates or devices)))
        console.print(_table(rows[-1:]))
    console.print(_table(rows))
    return publish(console, _claims(rows, folds), [*rows, *folds], args.json)


def measure_load(
    devices: int, updates: int, config: dict[str, Any] = LLAMA_1B, fewest: int = FEWEST_UPDATES
) -> dict[str, Any]:
    """Run rounds of one fleet on a new server.

    Args:
        devices: That enrol and check in, in every round.
        updates: Devices of them that also download and upload.
        config: Of the base model.
        fewest: Updates to send in all rounds together.

    Returns:
        One row of the report.
    """
    rounds = max(1, -(-fewest // updates))
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / "state"
        create_task(state, Path(scratch) / "model", config, devices, updates, rounds)
        token = server_command(state, "token", "create")["enrolment_token"]
        with WatchedServer(state, SETTINGS) as server:
            begun = time.perf_counter()
            fleet = enrol(server.address, token, devices, AT_ONCE)
            enrolling_s = time.perf_counter() - begun
            spec = fleet[0].task(TASK)
            bodies = Bodies(spec, SKETCH_SIZE, DISTINCT_UPDATES)
            cpu_s = server.cpu_s
            turns, busy_s, closing_s = _run_rounds(fleet, spec, bodies, updates, rounds)
            cpu_s = server.cpu_s - cpu_s
            time.sleep(_SETTLED_S)
            return {
                "devices": devices,
                "rounds": rounds,
                "updates_per_round": updates,
                "enrolled_per_s": devices / enrolling_s,
                **_rates(turns, busy_s),
                "closing_s": float(np.mean(closing_s)),
                "server_cpu_s": cpu_s,
                "server_cpu_s_per_update": cpu_s / (rounds * updates),
                "peak_rss_bytes": server.peak_rss_bytes,
                "end_rss_bytes": server.rss_bytes,
            }


def _run_rounds(
    fleet: Sequence[Device], spec: TaskSpec, bodies: Bodies, updates: int, rounds: int
) -> tuple[list[Turn], float, list[float]]:
    """Return every turn, the seconds until all updates were in, and those each closing took."""
    turns: list[Turn] = []
    busy_s, closing_s = 0.0, []
    for number in range(1, rounds + 1):
        begun = time.perf_counter()
        idle = side_by_side(
            lambda d: d.take_part(spec, SKETCH_SIZE, None), fleet[updates:], AT_ONCE
        )
        sent = side_by_side(
            lambda d: d.take_part(spec, SKETCH_SIZE, bodies), fleet[:updates], AT_ONCE
        )
        turns += idle + sent
        accepted = time.perf_counter()
        busy_s += accepted - begun
        while fleet[0].round_status(TASK, number).state != "closed":
            time.sleep(_LOOK_S)
        closing_s.append(time.perf_counter() - accepted)
    return turns, busy_s, closing_s


def create_task(
    state: Path, model: Path, config: dict[str, Any], devices: int, updates: int, rounds: int
) -> None:
    """Create a task whose rounds close with their last update."""
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {"none": np.zeros(1, dtype=np.float32)}  # no weight of it is ever read
    (model / "model.safetensors").write_bytes(safetensors.numpy.save(weights))
    words = ["task", "create", TASK, "--model", str(model), "--rank", str(RANK)]
    words += ["--wire-dtype", WIRE_DTYPE, "--update-encoding", "wire"]
    words += ["--sketch-sizes", str(SKETCH_SIZE), "--seed", "1"]
    words += ["--rounds", str(rounds), "--cohort-size", str(devices), "--quorum", str(updates)]
    server_command(state, *words, "--min-updates", "1", "--deadline", "86400")


def _rates(turns: Sequence[Turn], busy_s: float) -> dict[str, Any]:
    sent = [turn for turn in turns if turn.upload_bytes]
    up, down = (sum(getattr(turn, f"{x}load_bytes") for turn in sent) for x in ("up", "down"))
    return {
        "updates_per_s": len(sent) / busy_s,
        "up_mb_per_s": up / busy_s / 1e6,
        "down_mb_per_s": down / busy_s / 1e6,
        "up_bytes_per_device": up / len(sent),
        "down_bytes_per_device": down / len(sent),
        **_percentiles("check_in", [turn.check_in_s for turn in turns]),
        **_percentiles("download", [turn.download_s for turn in sent]),
        **_percentiles("upload", [turn.upload_s for turn in sent]),
        "busy_answers": sum(turn.busy_answers for turn in turns),
    }


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    return {f"{name}_p{p}_s": float(np.percentile(seconds, p)) for p in (50, 99)}


def _fixed_s(rows: Sequence[dict[str, Any]]) -> float:
    """Return what closing a round takes beside its updates: where a line meets no updates."""
    sizes = [row["updates_per_round"] for row in rows]
    if len(set(sizes)) < 2:
        return float("nan")
    return float(np.polyfit(sizes, [row["closing_s"] for row in rows], 1)[1])


def _claims(rows: Sequence[dict[str, Any]], folds: Sequence[dict[str, Any]]) -> list[Claim]:
    first, last = rows[0], rows[-1]
    claims = []
    for name in ("peak", "end"):
        growth = last[f"{name}_rss_bytes"] / first[f"{name}_rss_bytes"] - 1
        claims.append(
            Claim(
                claim=f"server RSS, {name}: growth from {first['devices']} to {last['devices']} "
                "devices",
                target=f"< {MOST_GROWTH}",
                measured=growth,
                holds=growth < MOST_GROWTH,
            )
        )
    for fold in folds:
        claims.append(
            Claim(
                claim=f"folding one {fold['wire_dtype']} update, in plain passes over its bytes",
                target=f"<= {MOST_PASSES}",
                measured=fold["passes"],
                holds=fold["passes"] <= MOST_PASSES,
            )
        )
    return claims


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("", title="one server, by size of the fleet")
    for row in rows:
        table.add_column(f"{row['devices']:,}", justify="right")
    for name in rows[0]:
        if name != "devices":
            table.add_row(name, *(_text(name, row[name]) for row in rows))
    if len(rows) > 1:
        table.add_row("fixed seconds of a round", f"{_fixed_s(rows):.3f}")
    return table


def _fold_table(folds: Sequence[dict[str, Any]]) -> Table:
    table = Table("folding one update", *(fold["wire_dtype"] for fold in folds))
    for name in folds[0]:
        if name != "wire_dtype":
            table.add_row(name, *(_text(name, fold[name]) for fold in folds))
    return table


def _text(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.1f} MB"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _sizes(text: str) -> list[int]:
    return sorted({int(part) for part in text.split(",")})


if __name__ == "__main__":
    sys.exit(main())
