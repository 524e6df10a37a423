"""Does every plan hold? Random memory budgets, each under a kernel limit of exactly that size.

A real server and, for each budget, a real device process in a control group that kills it at the
first byte too many. Baseline: a process that takes no notice of its budget, killed in the same
way in the same run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.base_models import base_folder
from bench.cgroup import MemoryCgroup
from bench.report import Claim, json_path, publish
from bench.training_run import GLOBAL_RANK, Run
from demo.processes import Processes
from edge_sdk.compute.execution import Execution
from edge_sdk.device import probe
from edge_sdk.model.model_folder import read_model_shape
from edge_sdk.planning.microbenchmark import known_rates, measure_rates
from edge_sdk.quantities import format_bytes

BUDGETS = 30
AT_ONCE = 2  # each in a control group of its own
SMALLEST, LARGEST = 600_000_000, 1_400_000_000
SEED = 30
RANK = 128
LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128)
BATCH_SIZE, LENGTH, LOCAL_STEPS = 4, 48, 3
LEAST_USE = 0.8


def main() -> int:
    """Run every budget, print the table and the claims."""
    path = json_path(__doc__)
    console = Console(width=110)
    model, threads = base_folder("smollm2"), max(1, probe().cores // AT_ONCE)
    if known_rates(probe(), threads).origin != "measured":
        measure_rates(probe(), threads)
    budgets = np.random.default_rng(SEED).integers(SMALLEST, LARGEST, BUDGETS).tolist()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Processes(Path(scratch) / "logs", threads) as processes,
    ):
        address, token = _serve(processes, Path(scratch), model, len(budgets))
        data = _write_data(Path(scratch) / "data.jsonl")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            runs = [
                pool.submit(_run, scratch, number, budget, address, token, model, data, threads)
                for number, budget in enumerate(budgets, start=1)
            ]
            rows = []
            for run in as_completed(runs):
                rows.append(run.result())
                console.print(f"{len(rows)}/{BUDGETS} {_text(rows[-1])}")
    is_killed = _kills_the_heedless(model, threads)
    console.print(
        f"a round with k = {GLOBAL_RANK} that takes no notice of a limit of "
        f"{format_bytes(SMALLEST)}: {'killed' if is_killed else 'not killed'}"
    )
    console.print(_table(rows))
    return publish(console, _claims(rows, is_killed), rows, path)


def _serve(processes: Processes, scratch: Path, model: Path, tasks: int) -> tuple[str, str]:
    state = ["--state", str(scratch / "server")]
    for number in range(1, tasks + 1):
        settings = {
            "model": model,
            "rank": RANK,
            "sketch-sizes": ",".join(map(str, LADDER)),
            "rounds": 1,
            "cohort-size": 1,
            "deadline": 3600,
            "local-steps": LOCAL_STEPS,
            "batch-size": BATCH_SIZE,
            "max-length": LENGTH,
            "update-encoding": "wire",
        }
        flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        create = ["server", "task", "create", f"run-{number}", *state, *flags, "--json"]
        processes.run(f"task-{number}", create)
    token = processes.run("token", ["server", "token", "create", *state, "--json"])
    processes.start("server", ["server", "serve", *state, "--port", "0", "--json"])
    return processes.first_line("server")["url"], token["enrolment_token"]


def _write_data(path: Path) -> Path:
    """Write examples that are all longer than the task allows, so that each has full length."""
    words = ["river", "stone", "cloud", "amber", "signal", "garden", "winter", "copper"]
    rng = np.random.default_rng(SEED)
    lines = [json.dumps({"text": " ".join(rng.choice(words, 2 * LENGTH))}) for _ in range(32)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _run(
    scratch: str,
    number: int,
    budget: int,
    address: str,
    token: str,
    model: Path,
    data: Path,
    threads: int,
) -> dict[str, Any]:
    """Run one device to the end of its task under a kernel limit."""
    command = [sys.executable, "-m", "edge_sdk", "run", "--now", "--json"]
    command += ["--server", address, "--token", token, "--task", f"run-{number}"]
    command += ["--data", str(data), "--model", str(model), "--memory-budget", str(budget)]
    command += ["--state", f"{scratch}/device-{number}", "--name", f"device-{number}"]
    command += ["--threads", str(threads)]
    with MemoryCgroup(budget) as group:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            preexec_fn=group.enter,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)},
            check=False,
        )
        kills, charged = group.kills(), group.peak_bytes()
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    finished = rounds[0] if done.returncode == 0 and rounds else {}
    return {
        "budget_bytes": budget,
        "finished": bool(finished.get("counted")),
        "killed": kills > 0,
        "k": finished.get("k"),
        "planned_bytes": finished.get("planned_bytes"),
        "peak_bytes": finished.get("peak_rss_bytes"),
        "charged_bytes": charged,
        "message": "" if finished else (done.stderr.strip().splitlines() or ["no message"])[-1],
        "stepped_down": "going on with less" in done.stderr,
    }


def _kills_the_heedless(model: Path, threads: int) -> bool:
    """Train without plan or guard under the smallest limit; say whether the kernel killed it."""
    shape = read_model_shape(model)
    execution = Execution(
        quantization="nf4",
        products="wide",
        micro_batch=BATCH_SIZE,
        recomputed_blocks=0,
        length=LENGTH,
        trained_targets=shape.default_targets,
        k=GLOBAL_RANK,
    )
    run = Run(
        folder=str(model),
        task_type="CAUSAL_LM",
        execution=execution,
        batch_size=BATCH_SIZE,
        learned=LENGTH,
        steps=LOCAL_STEPS,
        threads=threads,
    )
    command = [sys.executable, "-m", "bench.training_run", msgspec.json.encode(run).decode()]
    with MemoryCgroup(SMALLEST) as group:
        subprocess.run(command, capture_output=True, preexec_fn=group.enter, check=False)
        return group.kills() > 0


def _text(row: dict[str, Any]) -> str:
    if not row["finished"]:
        how = "killed" if row["killed"] else row["message"]
        return f"budget {format_bytes(row['budget_bytes'])}: {how}"
    down = ", stepped down" if row["stepped_down"] else ""
    return (
        f"budget {format_bytes(row['budget_bytes'])}: k {row['k']}, peak "
        f"{format_bytes(row['peak_bytes'])}, {row['peak_bytes'] / row['budget_bytes']:.0%}{down}"
    )


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("budget = kernel limit", "k", "planned", "peak", "used", "stepped down", "round")
    for row in sorted(rows, key=lambda row: int(row["budget_bytes"])):
        if not row["finished"]:
            table.add_row(format_bytes(row["budget_bytes"]), "-", "-", "-", "-", "-", _text(row))
            continue
        table.add_row(
            format_bytes(row["budget_bytes"]),
            str(row["k"]),
            format_bytes(row["planned_bytes"]),
            format_bytes(row["peak_bytes"]),
            f"{row['peak_bytes'] / row['budget_bytes']:.0%}",
            "yes" if row["stepped_down"] else "no",
            "counted",
        )
    return table


def _claims(rows: list[dict[str, Any]], is_killed: bool) -> list[Claim]:
    finished = sum(row["finished"] for row in rows)
    killed = sum(row["killed"] for row in rows)
    limited = [row for row in rows if row["finished"] and row["k"] < RANK]
    use = min((row["peak_bytes"] / row["budget_bytes"] for row in limited), default=0.0)
    return [
        Claim(
            claim="devices that finished their round",
            target=f"{BUDGETS} of {BUDGETS}",
            measured=finished,
            holds=finished == BUDGETS,
        ),
        Claim(claim="devices killed", target="0", measured=killed, holds=killed == 0),
        Claim(
            claim="budgets that limited k",
            target=">= 10, or the next claim is empty",
            measured=len(limited),
            holds=len(limited) >= 10,
        ),
        Claim(
            claim="least use of a budget that limited k",
            target=f">= {LEAST_USE:.0%}",
            measured=use,
            holds=use >= LEAST_USE,
        ),
        Claim(
            claim="a process that takes no notice of its limit was killed (the limit is real)",
            target="1",
            measured=int(is_killed),
            holds=is_killed,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
