"""The command ``edge-server``: run the server, and look after its tasks."""

from __future__ import annotations

import argparse
import gc
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from edge_sdk.errors import EdgeError
from server.access.audit import local_user
from server.commands import output
from server.commands import settings as settings_command
from server.commands import task as task_command
from server.commands.access import AccessCommands
from server.commands.advice import advice
from server.commands.backup import BackupCommands
from server.commands.registry import RegistryCommands
from server.operation.reports import round_reports, task_reports
from server.rounds.adapters import AdapterShelf
from server.rounds.tasks import create_task
from server.settings.settings import Settings
from server.settings.settings_sources import read_settings
from server.state import open_state

_SEED_BITS = 53


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 after an error, 2 for wrong usage."""
    args = _build_parser().parse_args(argv)
    try:
        args.run(args)
    except EdgeError as error:
        sys.stderr.write(f"edge-server: {' '.join(str(error).split())}\n")
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-server", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _command(commands, "serve", "run the server", _serve, settings=None)

    task = _group(commands, "task", "make and list tasks")
    create = _command(task, "create", "make a task and its initial adapter", _create_task)
    task_command.add_arguments(create)
    _command(task, "list", "list the tasks", _list_tasks)

    access = AccessCommands(_settings)
    access.add_token(_group(commands, "token", "let devices in"), _command)
    access.add_device(_group(commands, "device", "look after devices"), _command)
    access.add_admin(_group(commands, "admin", "look after admins"), _command)
    credentials = _group(commands, "credentials", "look after what access tokens are made with")
    access.add_credentials(credentials, _command)
    access.add_audit(commands, _command)

    rounds = _group(commands, "round", "look at rounds")
    _command(rounds, "list", "list the rounds of a task", _list_rounds).add_argument("task")

    registry = RegistryCommands(_settings)
    registry.add_adapter(_group(commands, "adapter", "look after adapter versions"), _command)
    registry.add_key(_group(commands, "key", "look after the key that signs adapters"), _command)
    config = _group(commands, "config", "look at the settings")
    show = settings_command.show
    _command(config, "show", "show settings and their origins", show, settings=None)
    BackupCommands(_settings).add(commands, _command)
    return parser


_Subparsers = argparse._SubParsersAction  # argparse has no public name for it


def _group(
    commands: _Subparsers[argparse.ArgumentParser], name: str, text: str
) -> _Subparsers[argparse.ArgumentParser]:
    parser = commands.add_parser(name, help=text, description=text)
    return parser.add_subparsers(required=True, metavar="COMMAND")


def _command(
    commands: _Subparsers[argparse.ArgumentParser],
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], None],
    settings: Iterable[str] | None = settings_command.STATE_SETTINGS,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    settings_command.add_flags(parser, settings)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    return read_settings(vars(args), os.environ)


def _serve(args: argparse.Namespace) -> None:
    from server.operation import logs  # the other commands do without a web server
    from server.serving import serve

    gc.freeze()  # what was imported stays
    gc.enable()
    settings = _settings(args)
    logs.configure(settings.log_format, settings.log_level)

    def announce(url: str, port: int) -> None:
        facts = {"url": url, "port": port, "state": str(settings.state)}
        output.line(f"edge-server listens on {url}, state in {settings.state}", facts, args.json)

    serve(settings, announce)


def _create_task(args: argparse.Namespace) -> None:
    spec = task_command.build_spec(args)
    seed = secrets.randbits(_SEED_BITS) if args.seed is None else args.seed
    store, blobs = open_state(_settings(args))
    create_task(store, AdapterShelf(blobs), spec, seed, time.time(), local_user())
    text = (
        f"task {spec.name}: rank {spec.adapter.r} on {len(spec.adapter.layers)} layers of "
        f"{spec.base.model}, {spec.policy.rounds} rounds, sketch sizes {spec.policy.sketch_sizes}"
    )
    unwise = advice(spec)
    text = "\n".join([text, *(f"advice: {x}" for x in unwise)])
    output.line(text, {"seed": seed, "task": spec, "advice": unwise}, args.json)


def _list_tasks(args: argparse.Namespace) -> None:
    store, _ = open_state(_settings(args))
    output.tasks(task_reports(store), args.json)


def _list_rounds(args: argparse.Namespace) -> None:
    store, _ = open_state(_settings(args))
    output.rounds(round_reports(store, args.task), args.json)
