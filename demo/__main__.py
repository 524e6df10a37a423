"""The main job: a server and four devices fine-tune a real 4-bit LLM on this machine.

Every process is the one a user would start; nothing here is simulated but the number of
machines. Everything is written under ``.demo`` in the current folder.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

from rich.console import Console

from demo import screen, smollm2, trec
from demo.processes import Processes
from edge_sdk.compute.execution import Execution
from edge_sdk.device import probe
from edge_sdk.errors import EdgeError
from edge_sdk.general.memory_need import adapter_parameters
from edge_sdk.model.model_folder import config_digest, read_model_shape
from edge_sdk.planning.allowance import Allowance
from edge_sdk.planning.cost import Cost, Workload, cost_of
from edge_sdk.planning.local_plan import LocalPlanner
from edge_sdk.quantities import format_bytes

FOLDER = Path(".demo")
TASK = "question-types"
RANK = 16
ROUNDS = 6
LOCAL_STEPS = 8
BATCH_SIZE = 8
MAX_LENGTH = 32
LOCAL_LR = 1e-3
HELDOUT = 300
EXAMPLES_PER_DEVICE = 400
SEED = 7
TOKENS_LEARNED = 2  # of each example: the answer word and the end token
SKETCH_SIZES = (1, 2, 4, 8, 16)
PORT = 8765  # for looking at the finished run; while it runs the system chooses
FLEET = {"ada": 2, "ben": 4, "cleo": 8, "dan": 16}  # device to the sketch it can afford


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the fleet did.

    Attributes:
        devices: For each device its round results, in order.
        seconds: Wall time of all rounds.
    """

    devices: dict[str, list[dict[str, Any]]]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The server of the demo while it runs.

    Attributes:
        address: Where devices find it.
        enrolment_token: Lets them in.
        reader_token: Opens the dashboard, which only looks.
    """

    address: str
    enrolment_token: str
    reader_token: str


def main() -> int:
    """Run the demo; returns the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    console = Console()
    try:
        _demo(console)
    except EdgeError as error:
        console.print(f"[red]demo: {error}[/red]", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        return 130
    return 0


def _demo(console: Console) -> None:
    console.rule("Model and data")
    model = smollm2.smollm2_folder()
    shutil.rmtree(FOLDER, ignore_errors=True)
    split = trec.write_split(
        FOLDER / "data",
        devices=list(FLEET),
        examples_per_device=EXAMPLES_PER_DEVICE,
        heldout=HELDOUT,
        seed=SEED,
    )
    console.print(f"SmolLM2-135M-Instruct in {model}", soft_wrap=True)
    console.print(screen.data_table(split))
    cores = probe().cores
    threads = max(1, cores // len(FLEET))
    console.print("Measuring this machine …")
    allowed = _allowances(model, threads)
    console.print(
        "Each device may spend so much memory, and so many bytes on the network per round: "
        + ", ".join(
            f"{name} {format_bytes(cost.memory_bytes)} and {format_bytes(cost.transfer_bytes)}"
            for name, cost in allowed.items()
        )
    )
    console.print(
        f"{len(FLEET)} device processes share {cores} cores: {threads} thread(s) each; "
        f"measuring on held-out questions uses {cores}."
    )
    with Processes(FOLDER / "logs", threads) as processes:
        console.print("Measuring the untrained model on the held-out questions …")
        before = _heldout(processes, "heldout-before", model, cores)
        served = _start_server(processes, model)
        console.rule(f"{ROUNDS} rounds on {served.address}")
        _print_line(console, f"Dashboard: {_dashboard(served.address, served.reader_token)}")
        devices = _device_commands(model, served, threads, allowed)
        outcome = _run_fleet(console, processes, devices)
        adapter = _export(processes, model)
        console.print("Measuring the trained model on the held-out questions …")
        after = _heldout(processes, "heldout-after", model, cores, adapter)
    summary = _summary(model, split, outcome, before, after, adapter)
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    full = _full_rank_bytes(model)
    console.rule("Result")
    console.print(screen.result_table(summary["heldout"]))
    budgets = {name: cost.memory_bytes for name, cost in allowed.items()}
    console.print(screen.fleet_table(summary["devices"], budgets, full))
    console.print(f"{ROUNDS} rounds took {outcome.seconds:.0f} s. Summary: {FOLDER}/summary.json")
    console.print(f"The adapter is a PEFT folder: {adapter}. Try it:")
    _print_line(console, _try_line(adapter))
    console.print("The server has stopped. To look at what it did, serve its folder again:")
    _print_line(console, f"  .venv/bin/edge-server serve --state {FOLDER}/server --port {PORT}")
    _print_line(console, f"  {_dashboard(f'http://127.0.0.1:{PORT}', served.reader_token)}")


def _start_server(processes: Processes, model: Path) -> Served:
    """Create the task in an empty database and serve it."""
    state = _flags(state=FOLDER / "server")
    task = _flags(
        model=model,
        base_name="SmolLM2-135M-Instruct",
        rank=RANK,
        sketch_sizes=",".join(map(str, SKETCH_SIZES)),
        seed=SEED,
        rounds=ROUNDS,
        cohort_size=len(FLEET),
        deadline=300,
        local_steps=LOCAL_STEPS,
        local_lr=LOCAL_LR,
        batch_size=BATCH_SIZE,
        max_length=MAX_LENGTH,
        update_encoding="wire",  # bytes as in 32 bits, to compare
    )
    create = ["server", "task", "create", TASK, *state, *task, "--json"]
    processes.run("task-create", create)
    token = processes.run("token-create", ["server", "token", "create", *state, "--json"])
    reader = ["server", "admin", "create", "demo", "--role", "read", *state, "--json"]
    reader_token = processes.run("admin-create", reader)["admin_token"]
    processes.start("server", ["server", "serve", *state, "--port", "0", "--json"])
    return Served(
        address=processes.first_line("server")["url"],
        enrolment_token=token["enrolment_token"],
        reader_token=reader_token,
    )


def _allowances(model: Path, threads: int) -> dict[str, Cost]:
    """Return what each sketch costs by the planner's own numbers: so much each device may spend."""
    shape = read_model_shape(model)
    work = Workload(
        shape=shape,
        layers=tuple(shape.target_layers(shape.default_targets)),
        r=RANK,
        sketch_sizes=SKETCH_SIZES,
        quantizations=("nf4",),
        batch_size=BATCH_SIZE,
        local_steps=LOCAL_STEPS,
        length=MAX_LENGTH,
        learned=TOKENS_LEARNED,
    )
    planner = LocalPlanner(Allowance(threads=threads), FOLDER, config_digest(model))
    machine, budget = planner.machine(measure=True), planner.budget()
    return {
        name: cost_of(
            work,
            machine,
            budget,
            Execution(
                quantization="nf4",
                products="wide",
                micro_batch=BATCH_SIZE,
                recomputed_blocks=0,
                length=MAX_LENGTH,
                trained_targets=shape.default_targets,
                k=k,
            ),
        )
        for name, k in FLEET.items()
    }


def _device_commands(
    model: Path, served: Served, threads: int, allowed: dict[str, Cost]
) -> dict[str, list[str]]:
    """Return the command of each device, as its owner would type it."""
    commands = {}
    for name, cost in allowed.items():
        flags = _flags(
            server=served.address,
            token=served.enrolment_token,
            name=name,
            state=FOLDER / "devices" / name,
            data=FOLDER / "data" / f"{name}.jsonl",
            model=model,
            memory_budget=cost.memory_bytes,
            transfer_budget=cost.transfer_bytes,
            threads=threads,
        )
        commands[name] = ["edge_sdk", "run", "--now", "--json", *flags]
    return commands


def _run_fleet(console: Console, processes: Processes, devices: dict[str, list[str]]) -> Outcome:
    """Start every device and show its rounds until all of them are finished."""
    events: Queue[tuple[str, dict[str, Any] | None]] = Queue()
    started = time.monotonic()
    for name, command in devices.items():
        processes.start(name, command)
        processes.follow(name, events)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in FLEET}
    running = set(FLEET)
    with screen.live_rounds(console, list(FLEET), ROUNDS) as show:
        while running:
            name, event = events.get()
            if event is None:
                processes.check(name)
                running.discard(name)
                continue
            results[name].append(event)
            show(name, event, time.monotonic() - started)
    return Outcome(devices=results, seconds=time.monotonic() - started)


def _export(processes: Processes, model: Path) -> Path:
    adapter = FOLDER / "adapter"
    flags = _flags(state=FOLDER / "server", base=model)
    export = ["server", "adapter", "export", TASK, str(adapter), *flags, "--json"]
    processes.run("adapter-export", export)
    return adapter


def _heldout(
    processes: Processes, name: str, model: Path, threads: int, adapter: Path | None = None
) -> dict[str, Any]:
    flags = _flags(model=model, threads=threads, heldout=FOLDER / "data" / "heldout.jsonl")
    command = ["demo.heldout", *flags, *(_flags(adapter=adapter) if adapter else [])]
    measured: dict[str, Any] = processes.run(name, command, {"OMP_NUM_THREADS": str(threads)})
    return measured


def _flags(**values: object) -> list[str]:
    """Return command line flags: ``local_lr=0.1`` becomes ``--local-lr 0.1``."""
    return [
        text
        for name, value in values.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]


def _summary(
    model: Path,
    split: trec.Split,
    outcome: Outcome,
    before: dict[str, Any],
    after: dict[str, Any],
    adapter: Path,
) -> dict[str, Any]:
    return {
        "model": str(model),
        "rounds": ROUNDS,
        "global_rank": RANK,
        "heldout": {
            "examples": after["examples"],
            "loss_of": "the answer word given its question, on the 4-bit (NF4) base",
            "loss_before": before["loss"],
            "loss_after": after["loss"],
            "accuracy_before": before["accuracy"],
            "accuracy_after": after["accuracy"],
        },
        "devices": [
            {
                "name": name,
                "k": rounds[-1]["k"],
                "examples": split.devices[name].examples,
                "planned_bytes": rounds[-1]["planned_bytes"],
                "upload_bytes": [done["upload_bytes"] for done in rounds],
                "download_bytes": [done["download_bytes"] for done in rounds],
                "peak_rss_bytes": max(done["peak_rss_bytes"] for done in rounds),
            }
            for name, rounds in outcome.devices.items()
        ],
        "adapter_dir": str(adapter),
    }


def _full_rank_bytes(model: Path) -> int:
    """Bytes of the tensors one device would send per round at full rank."""
    shape = read_model_shape(model)
    return 4 * adapter_parameters(shape.target_layers(shape.default_targets), RANK)


def _dashboard(address: str, reader_token: str) -> str:
    return f"{address}/dashboard#token={reader_token}"


def _print_line(console: Console, text: str) -> None:
    """Print a line that people copy: as it is, in one piece."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _try_line(adapter: Path) -> str:
    prompt = trec.PROMPT.format(question="Who wrote Hamlet ?").replace("\n", "\\n")
    return f"  .venv/bin/edge-sdk infer --adapter {adapter} --max-new-tokens 3 $'{prompt}'"


if __name__ == "__main__":
    sys.exit(main())
