"""``edge-sdk`` on a device: ``probe | plan | join | change-key | run | pull | infer``."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec
from rich.console import Console

from edge_sdk.errors import EdgeError
from edge_sdk.identity import default_state_folder
from edge_sdk.infer_command import add_infer_options, run_infer
from edge_sdk.plan_command import add_allowance_options, add_plan_options, read_allowance, run_plan
from edge_sdk.quantities import format_bytes

_out = Console(soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 refused, 2 misused, 130 interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING,
        format="%(message)s",
    )
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except EdgeError as error:
        sys.stderr.write(f"edge-sdk: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _probe(options: argparse.Namespace) -> None:
    from edge_sdk.probe_command import run_probe

    found = run_probe(_out, options.json, options.refresh, options.threads)
    if options.json:
        _print_json(found)


def _plan(options: argparse.Namespace) -> None:
    plan = run_plan(options, _out)
    if options.json:
        _print_json(plan)


def _join(options: argparse.Namespace) -> None:
    from edge_sdk.enrolment import join

    identity = join(options.state, options.server, options.token, options.name)
    if options.json:
        _print_json({"server": identity.server, "device_id": identity.device_id})
        return
    _out.print(f"joined {identity.server} as {identity.name} ({identity.device_id})")
    _out.print("next: edge-sdk run --data your-examples.jsonl")


def _change_key(options: argparse.Namespace) -> None:
    from edge_sdk.enrolment import change_key

    identity = change_key(options.state)
    if options.json:
        _print_json({"server": identity.server, "device_id": identity.device_id})
        return
    _out.print(f"{identity.server} knows {identity.name} ({identity.device_id}) by a new key")


def _run(options: argparse.Namespace) -> None:
    from edge_sdk.round_loop import RoundLoop

    if not options.json:
        logging.getLogger("edge_sdk").setLevel(logging.INFO)
    client = RoundLoop(
        data=options.data,
        server=options.server,
        task=options.task,
        model=options.model,
        enrolment_token=options.token,
        name=options.name,
        state_folder=options.state,
        allowance=read_allowance(options),
        gate=options.gate,
        personal=options.personal,
    )
    for done in client.rounds():
        if options.json:
            _print_json(asdict(done))
            continue
        late = "" if done.counted else "  too late, not counted"
        _out.print(
            f"round {done.round_number}: k {done.k}, loss {done.loss:.3f}, "
            f"up {format_bytes(done.upload_bytes)}, down {format_bytes(done.download_bytes)}, "
            f"{done.training_s:.1f} s, peak {format_bytes(done.peak_rss_bytes)} "
            f"(planned {format_bytes(done.planned_bytes)}){late}"
        )


def _pull(options: argparse.Namespace) -> None:
    from edge_sdk.round_loop import RoundLoop

    client = RoundLoop(task=options.task, model=options.model, state_folder=options.state)
    version = client.pull(options.out)
    if options.json:
        _print_json({"version": version, "adapter": str(options.out)})
        return
    _out.print(f"adapter version {version} is in {options.out}")


def _infer(options: argparse.Namespace) -> None:
    answer = run_infer(options, _out)
    if options.json:
        _print_json(answer)


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-sdk", description="Fine-tune a language model together, on this device."
    )
    parser.add_argument("--verbose", action="store_true", help="log every step")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    probe = _command(commands, "probe", _probe, "measure this device")
    probe.add_argument("--refresh", action="store_true", help="measure its speed again")
    probe.add_argument("--threads", type=int, help="default: the cores this process may use")

    plan = _command(commands, "plan", _plan, "what this device can afford to train")
    _add_model(plan, required=True)
    add_plan_options(plan)
    add_allowance_options(plan)
    _add_state(plan)

    join = _command(commands, "join", _join, "enrol this device on a server")
    join.add_argument("server", help="address, such as http://127.0.0.1:8765")
    join.add_argument("--token", required=True, help="enrolment token from the operator")
    _add_identity(join)

    change_key = _command(commands, "change-key", _change_key, "give this device a new key")
    _add_state(change_key)

    run = _command(commands, "run", _run, "take part until the task is finished")
    run.add_argument("--data", type=Path, required=True, help="JSONL with this device's examples")
    run.add_argument("--task", help="needed if the server has several")
    run.add_argument("--server", help="needed if this device has not joined yet")
    run.add_argument("--token", help="enrolment token, if this device has not joined yet")
    _add_identity(run)
    _add_model(run, required=False)
    add_allowance_options(run)
    run.add_argument(
        "--gate", action="store_true", help="use a new version only if it does not lose here"
    )
    run.add_argument(
        "--personal", action="store_true", help="the same, and an adapter of this device's own"
    )

    pull = _command(commands, "pull", _pull, "fetch the newest adapter as a PEFT folder")
    pull.add_argument("out", type=Path, help="folder to write")
    pull.add_argument("--task", help="needed if the server has several")
    _add_state(pull)
    _add_model(pull, required=False)

    infer = _command(commands, "infer", _infer, "use a base model with an adapter")
    add_infer_options(infer)
    _add_model(infer, required=False)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(command=run)
    return parser


def _add_identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default=socket.gethostname(), help="of this device, for people")
    _add_state(parser)


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state",
        type=Path,
        default=default_state_folder(),
        help="folder of its identity and what it learned",
    )


def _add_model(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--model", required=required, help="folder or hub id of the base model")
