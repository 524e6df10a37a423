"""``edge-sdk``: what the owner of a device does with it, a command each."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from edge_sdk.commands.infer import add_infer_options, run_infer
from edge_sdk.commands.plan import add_allowance_options, add_plan_options, run_plan
from edge_sdk.commands.run import add_policy_options, leave_fleet, run, show_status
from edge_sdk.commands.token_options import add_token_options, read_token
from edge_sdk.errors import ConfigError, EdgeError
from edge_sdk.identity.identity import default_state_folder

_out = Console(soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 refused, 2 misused, 130 interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING,
        format="%(message)s",
    )
    command: Callable[[argparse.Namespace], int | None] = options.command
    try:
        return command(options) or 0
    except EdgeError as error:
        sys.stderr.write(f"edge-sdk: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _probe(options: argparse.Namespace) -> None:
    from edge_sdk.commands.probe import run_probe

    found = run_probe(_out, options.json, options.refresh, options.threads)
    if options.json:
        _print_json(found)


def _plan(options: argparse.Namespace) -> None:
    plan = run_plan(options, _out)
    if options.json:
        _print_json(plan)


def _join(options: argparse.Namespace) -> None:
    from edge_sdk.network.enrolment import join

    identity = join(options.state, options.server, read_token(options), options.name)
    if options.json:
        _print_json({"server": identity.server, "device_id": identity.device_id})
        return
    _out.print(f"joined {identity.server} as {identity.name} ({identity.device_id})")
    _out.print("next: edge-sdk run --data your-examples.jsonl")


def _change_key(options: argparse.Namespace) -> None:
    from edge_sdk.network.enrolment import change_key

    identity = change_key(options.state)
    if options.json:
        _print_json({"server": identity.server, "device_id": identity.device_id})
        return
    _out.print(f"{identity.server} knows {identity.name} ({identity.device_id}) by a new key")


def _run(options: argparse.Namespace) -> None:
    run(options, _out, _print_json)


def _status(options: argparse.Namespace) -> None:
    show_status(options, _out, _print_json)


def _leave(options: argparse.Namespace) -> None:
    leave_fleet(options, _out, _print_json)


def _pull(options: argparse.Namespace) -> None:
    from edge_sdk.rounds.membership import Membership

    device = Membership(task=options.task, model=options.model, state_folder=options.state)
    version = device.pull(options.out)
    if options.json:
        _print_json({"version": version, "adapter": str(options.out)})
        return
    _out.print(f"adapter version {version} is in {options.out}")


def _infer(options: argparse.Namespace) -> None:
    answer = run_infer(options, _out)
    if options.json:
        _print_json(answer)


def _doctor(options: argparse.Namespace) -> int:
    from edge_sdk.commands.doctor import as_builtins, is_healthy, run_doctor

    findings = run_doctor(_out, options.state, options.server, as_json=options.json)
    if options.json:
        _print_json(as_builtins(findings))
    return 0 if is_healthy(findings) else 1


def _simulate(options: argparse.Namespace) -> None:
    try:
        from simulation.command import run_simulations
    except ImportError as error:
        raise ConfigError(
            f"simulations need the server's code ({error}): pip install 'edge-sdk[simulate]'"
        ) from error
    found = run_simulations(options, _out)
    if options.json:
        _print_json(found)


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
    add_token_options(join)
    _add_identity(join)

    change_key = _command(commands, "change-key", _change_key, "give this device a new key")
    _add_state(change_key)

    part = _command(commands, "run", _run, "take part until the task is finished")
    part.add_argument("--data", type=Path, required=True, help="JSONL with this device's examples")
    part.add_argument("--task", help="needed if the server has several")
    part.add_argument("--server", help="needed if this device has not joined yet")
    add_token_options(part)
    _add_identity(part)
    _add_model(part, required=False)
    add_allowance_options(part)
    part.add_argument(
        "--gate", action="store_true", help="use a new version only if it does not lose here"
    )
    part.add_argument(
        "--personal", action="store_true", help="the same, and an adapter of this device's own"
    )
    add_policy_options(part)

    status = _command(commands, "status", _status, "what the agent of this device is doing")
    _add_state(status)

    leaving = _command(commands, "leave", _leave, "forget the server, and this device's key")
    _add_state(leaving)

    pull = _command(commands, "pull", _pull, "fetch the newest adapter as a PEFT folder")
    pull.add_argument("out", type=Path, help="folder to write")
    pull.add_argument("--task", help="needed if the server has several")
    _add_state(pull)
    _add_model(pull, required=False)

    infer = _command(commands, "infer", _infer, "use a base model with an adapter")
    add_infer_options(infer)
    _add_model(infer, required=False)

    simulate = _command(commands, "simulate", _simulate, "run a made-up fleet in this process")
    simulate.add_argument("config", type=Path, help="TOML file, see docs/simulation.md")
    simulate.add_argument("--out", type=Path, help="folder of the results (default: by the file)")
    simulate.add_argument("--jobs", type=int, default=1, help="runs at once, each in a process")
    simulate.add_argument("--ray", action="store_true", help="run them on a Ray cluster")
    simulate.add_argument("--plot", type=Path, metavar="FILE", help="also draw what was learned")

    doctor = _command(commands, "doctor", _doctor, "try what usually fails, and say how to fix it")
    doctor.add_argument("--server", help="default: the one this device joined")
    _add_state(doctor)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int | None],
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
