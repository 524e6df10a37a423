"""The command ``edge-server``: run the server, and look after its tasks."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from edge_sdk.errors import EdgeError
from edge_sdk.peft_folder import write_peft_folder
from server import output, task_command
from server.adapters import AdapterShelf
from server.auth import make_enrolment_token
from server.lookup import find_adapter, find_task
from server.reports import round_reports, task_reports
from server.settings import Settings, read_settings
from server.state import open_state
from server.tasks import create_task

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
    _add_serve(commands)

    task = _group(commands, "task", "make and list tasks")
    create = _command(task, "create", "make a task and its initial adapter", _create_task)
    task_command.add_arguments(create)
    _command(task, "list", "list the tasks", _list_tasks)

    token = _group(commands, "token", "let devices in")
    _command(token, "create", "print a new enrolment token, once", _create_token)

    rounds = _group(commands, "round", "look at rounds")
    _command(rounds, "list", "list the rounds of a task", _list_rounds).add_argument("task")

    adapter = _group(commands, "adapter", "look at adapter versions")
    _command(adapter, "list", "list the versions", _list_adapters).add_argument("task")
    export = _command(adapter, "export", "write a version as a PEFT folder", _export_adapter)
    export.add_argument("task")
    export.add_argument("out", type=Path, help="folder to write")
    export.add_argument("--version", type=int, help="default: the latest")
    export.add_argument("--base", help="where PEFT finds the base model (default: as in the task)")
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
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--state", type=Path, metavar="DIR", help="state folder of the server")
    parser.add_argument("--database-url", metavar="URL", help="default: SQLite in the state folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _add_serve(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    serve = _command(commands, "serve", "run the server", _serve)
    defaults = {field.name: field.default for field in fields(Settings)}
    kinds = {"host": str, "port": int, "poll_s": float, "tick_s": float, "max_json_bytes": int}
    for name, kind in kinds.items():
        flag = "--" + name.replace("_", "-")
        serve.add_argument(flag, type=kind, help=f"default: {defaults[name]}")


def _settings(args: argparse.Namespace) -> Settings:
    return read_settings(vars(args), os.environ)


def _serve(args: argparse.Namespace) -> None:
    from server.serving import serve  # the other commands do without a web server

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings = _settings(args)

    def announce(url: str, port: int) -> None:
        facts = {"url": url, "port": port, "state": str(settings.state)}
        output.line(f"edge-server listens on {url}, state in {settings.state}", facts, args.json)

    serve(settings, announce)


def _create_task(args: argparse.Namespace) -> None:
    spec = task_command.build_spec(args)
    seed = secrets.randbits(_SEED_BITS) if args.seed is None else args.seed
    store, blobs = open_state(_settings(args))
    create_task(store, AdapterShelf(blobs), spec, seed, time.time())
    text = (
        f"task {spec.name}: rank {spec.adapter.r} on {len(spec.adapter.layers)} layers of "
        f"{spec.base.model}, {spec.policy.rounds} rounds, sketch sizes {spec.policy.sketch_sizes}"
    )
    output.line(text, {"seed": seed, "task": spec}, args.json)


def _list_tasks(args: argparse.Namespace) -> None:
    store, _ = open_state(_settings(args))
    output.tasks(task_reports(store), args.json)


def _create_token(args: argparse.Namespace) -> None:
    store, _ = open_state(_settings(args))
    token = make_enrolment_token(store, time.time())
    output.line(token, {"enrolment_token": token}, args.json)


def _list_rounds(args: argparse.Namespace) -> None:
    store, _ = open_state(_settings(args))
    output.rounds(round_reports(store, args.task), args.json)


def _list_adapters(args: argparse.Namespace) -> None:
    store, _ = open_state(_settings(args))
    with store.read() as tx:
        find_task(tx, args.task)
        rows = tx.adapters(args.task)
    output.adapters(rows, args.json)


def _export_adapter(args: argparse.Namespace) -> None:
    store, blobs = open_state(_settings(args))
    with store.read() as tx:
        spec = find_task(tx, args.task).spec
        latest = tx.adapters(args.task)[-1].version
        row = find_adapter(tx, args.task, latest if args.version is None else args.version)
    adapter = AdapterShelf(blobs).read(spec.adapter, row)
    write_peft_folder(args.out, spec, adapter, args.base or spec.base.model)
    facts = {"folder": str(args.out), "version": row.version, "round_number": row.round_number}
    output.line(f"adapter version {row.version} of {args.task} in {args.out}", facts, args.json)
