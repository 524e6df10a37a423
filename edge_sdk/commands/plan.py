"""``edge-sdk plan``: what this device, or another class of device, can afford to train."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from edge_sdk.compute.execution import Execution, Quantization
from edge_sdk.compute.rates import profile_rates
from edge_sdk.errors import ConfigError
from edge_sdk.memory.memory_guard import default_floor_bytes
from edge_sdk.model.model_folder import config_digest, find_model, read_model_shape
from edge_sdk.planning.allowance import Allowance
from edge_sdk.planning.cost import Budget, Machine, Workload
from edge_sdk.planning.local_plan import LocalPlanner
from edge_sdk.planning.plan import Plan, make_plan, memory_budget
from edge_sdk.planning.profiles import DeviceProfile, load_profile
from edge_sdk.quantities import (
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_rate,
    parse_seconds,
)
from edge_sdk.sketch import default_sketch_sizes
from edge_sdk.wire.task import TaskType

_LIMITS = {
    "memory": "memory: the next sketch does not fit the budget",
    "time": "time: the next sketch would miss the deadline",
    "transfer": "transfer: the next sketch moves more bytes than allowed",
    "rank": "nothing: this is the task's largest sketch",
}


def add_allowance_options(parser: argparse.ArgumentParser) -> None:
    """Add what an owner can allow; :func:`read_allowance` reads it back."""
    add = parser.add_argument
    add(
        "--quantization",
        choices=get_args(Quantization),
        help="number format of the frozen base (default: the first of all that fits)",
    )
    add("--memory-budget", type=_amount(parse_bytes), metavar="SIZE", help="such as 1.5GB")
    add(
        "--reserve-memory",
        type=_amount(parse_bytes),
        metavar="SIZE",
        default=0,
        help="stays free for your own programs",
    )
    add("--transfer-budget", type=_amount(parse_bytes), metavar="SIZE", help="per round, both ways")
    add("--uplink", type=_amount(parse_rate), metavar="RATE", help="to the server, such as 2Mbit/s")
    add("--downlink", type=_amount(parse_rate), metavar="RATE", help="from the server")
    add("--max-upload", type=_amount(parse_rate), metavar="RATE", help="never send faster")
    add("--max-download", type=_amount(parse_rate), metavar="RATE", help="never receive faster")
    add("--threads", type=int, help="default: the cores this process may use")


def read_allowance(options: argparse.Namespace, round_s: float | None = None) -> Allowance:
    """Return what the owner allowed on the command line."""
    return Allowance(
        memory_bytes=options.memory_budget,
        reserved_bytes=options.reserve_memory,
        round_s=round_s,
        transfer_bytes=options.transfer_budget,
        uplink_bytes_per_s=options.uplink,
        downlink_bytes_per_s=options.downlink,
        max_upload_bytes_per_s=options.max_upload,
        max_download_bytes_per_s=options.max_download,
        quantization=options.quantization,
        threads=options.threads,
    )


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes a task."""
    add = parser.add_argument
    add("--rank", type=int, required=True, help="global rank r of the adapter")
    add("--sketch-sizes", type=_sizes, help="the task's ladder (default: powers of two, and r)")
    add("--target", nargs="+", help="module name endings (default: by family)")
    add("--task-type", choices=get_args(TaskType), default="CAUSAL_LM", help="what the model does")
    add("--num-labels", type=int, default=2, help="classes, for SEQ_CLS")
    add("--batch-size", type=int, default=8, help="examples per optimizer step")
    add("--local-steps", type=int, default=10, help="optimizer steps per round")
    add("--max-length", type=int, default=256, help="tokens of the longest example")
    add("--learned", type=int, help="tokens learned per example (default: all)")
    add("--deadline", type=_amount(parse_seconds), metavar="TIME", help="of a round, as in 10min")
    add("--profile", help="plan for this class of device instead: a name, or a JSON file")


def run_plan(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Plan; print it for people unless JSON was asked for; return it for machines."""
    folder = find_model(options.model)
    work = _workload(options, folder)
    if options.profile:
        profile = load_profile(options.profile)
        machine, budget = profile_machine(profile), _profile_budget(profile, options)
        subject = f"{profile.title}, CPU only"
    else:
        allowance = read_allowance(options, options.deadline)
        planner = LocalPlanner(allowance, options.state, config_digest(folder))
        machine, budget = planner.machine(), planner.budget()
        subject = "this device"
    plan = make_plan(work, machine, budget)
    if not options.json:
        _print(console, plan, machine, f"{options.model} on {subject}")
    return {
        **asdict(plan),
        "k": plan.k,
        "accumulation": plan.accumulation,
        "rates": machine.rates.origin,
    }


def profile_machine(profile: DeviceProfile) -> Machine:
    """Return what the planner knows about a class of device: its CPU, by published numbers."""
    return Machine(
        has_native_bf16=profile.cpu.has_native_bf16,
        rates=profile_rates(
            profile.cpu.fp32_flops_per_s,
            profile.cpu.bf16_flops_per_s,
            profile.memory_bandwidth_bytes_per_s,
            profile.cpu.fast_cores,
            profile.cpu_quantizations,
            profile.cpu.multiplies_int8,
        ),
    )


def _profile_budget(profile: DeviceProfile, options: argparse.Namespace) -> Budget:
    memory_bytes, floor_bytes = memory_budget(
        profile.memory_usable_bytes,
        options.memory_budget,
        options.reserve_memory,
        default_floor_bytes(profile.memory_total_bytes),
    )
    return Budget(
        memory_bytes=memory_bytes,
        floor_bytes=floor_bytes,
        round_s=options.deadline,
        transfer_bytes=options.transfer_budget,
        uplink_bytes_per_s=options.uplink,
        downlink_bytes_per_s=options.downlink,
    )


def _workload(options: argparse.Namespace, folder: Path) -> Workload:
    labels = 0 if options.task_type == "CAUSAL_LM" else options.num_labels
    shape = read_model_shape(folder, options.task_type, labels)
    return Workload(
        shape=shape,
        layers=tuple(shape.target_layers(options.target or shape.default_targets)),
        r=options.rank,
        sketch_sizes=tuple(options.sketch_sizes or default_sketch_sizes(options.rank)),
        quantizations=Allowance(quantization=options.quantization).quantizations,
        batch_size=options.batch_size,
        local_steps=options.local_steps,
        length=options.max_length,
        learned=options.learned or options.max_length,
    )


def _print(console: Console, plan: Plan, machine: Machine, title: str) -> None:
    cost, execution = plan.cost, plan.execution
    table = Table("component", "predicted peak", title=f"{title}: k = {plan.k} of r = {plan.r}")
    table.columns[1].justify = "right"
    for component, size in asdict(cost.need).items():
        table.add_row(component, format_bytes(size))
    correction = cost.peak_bytes - cost.need.total
    if correction:
        table.add_row("correction by runs here", format_bytes(correction))
    table.add_section()
    table.add_row("predicted peak", format_bytes(cost.peak_bytes))
    table.add_row("with its margin", format_bytes(cost.memory_bytes))
    table.add_row("budget", format_bytes(plan.budget.memory_bytes))
    console.print(table)
    console.print(f"how: {execution_text(execution, plan.accumulation)}")
    for concession in plan.concessions:
        console.print(f"given up: {concession}")
    console.print(f"step: {format_seconds(cost.step_s)}; round: {_round_text(plan)}")
    console.print(f"transfer: {format_bytes(cost.transfer_bytes)} per round, both ways")
    console.print(f"k is limited by {_LIMITS[plan.limited_by]}")
    if plan.next_sketch is not None:
        larger = plan.next_sketch
        console.print(
            f"k = {larger.k} needs a memory budget of {format_bytes(larger.memory_bytes)}, a round "
            f"of {format_seconds(larger.round_s)} and {format_bytes(larger.transfer_bytes)} of "
            "transfer"
        )
    console.print(f"numbers: {_origin(plan, machine)}")


def execution_text(execution: Execution, accumulation: int) -> str:
    """Say in words how a plan trains."""
    products = {
        "wide": "products in the format of the activations",
        "int8": "products of 8-bit integers",
    }
    blocks = execution.recomputed_blocks
    again = f"{blocks} blocks computed twice" if blocks else "no block computed twice"
    return (
        f"base in {execution.quantization}, {products[execution.products]}, "
        f"{execution.micro_batch} examples at once x {accumulation}, {again}"
    )


def _round_text(plan: Plan) -> str:
    limit = plan.budget.round_s
    within = f" of {format_seconds(limit)}" if limit is not None else ", no deadline given"
    return f"{format_seconds(plan.cost.round_s)} with its margin{within}"


def _origin(plan: Plan, machine: Machine) -> str:
    if plan.cost.is_calibrated:
        return "corrected by runs of this model on this device"
    if machine.rates.origin == "measured":
        return "from the speed measured on this device; not yet corrected by a run"
    if machine.rates.origin == "profile":
        return "from published figures of the device; nothing was measured"
    return "from an assumed speed; edge-sdk probe measures it"


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 1,2,4,8") from None


def _amount(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse say what is wrong with an amount."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
