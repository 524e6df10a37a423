"""``edge-sdk run``, ``status`` and ``leave``: the agent on the command line."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import asdict
from typing import Any

from rich.console import Console

from edge_sdk.agent.only_one import OnlyOne, is_agent_running
from edge_sdk.agent.policy import Policy
from edge_sdk.agent.status import State, Status, read_status
from edge_sdk.agent.supervisor import Event
from edge_sdk.client import EdgeClient
from edge_sdk.commands.plan import read_allowance
from edge_sdk.commands.token_options import read_token
from edge_sdk.errors import EdgeError
from edge_sdk.network.leaving import leave
from edge_sdk.quantities import format_bytes, format_seconds

_DOING: dict[State, str] = {
    "stopped": "stopped",
    "starting": "starting: planning for this device and loading the model",
    "waiting": "waiting for the next round",
    "fetching": "round {0.round_number}: fetching the adapter",
    "training": "round {0.round_number}: training, step {0.step} of {0.steps}",
    "sending": "round {0.round_number}: sending what was learned",
    "paused": "paused",
    "retrying": "trying again",
    "finished": "finished: the task has no more rounds",
    "failed": "failed",
}


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """Add when this device may train; :func:`read_policy` reads it back."""
    usual = Policy()
    add = parser.add_argument
    add(
        "--now",
        action="store_true",
        help="in this process, whatever the device is doing: no rule below counts",
    )
    add(
        "--min-battery",
        type=float,
        metavar="PERCENT",
        default=usual.min_battery_percent,
        help="train on battery only above this charge; 100: on mains only (default: %(default)g)",
    )
    add("--metered", action="store_true", help="also on a network that costs money")
    add(
        "--max-other-cpu",
        type=float,
        metavar="PERCENT",
        default=usual.max_other_cpu_percent,
        help="of the processor, used by other programs (default: %(default)g)",
    )
    add(
        "--max-temperature",
        type=float,
        metavar="CELSIUS",
        default=usual.max_temperature_c,
        help="of the hottest sensor (default: %(default)g)",
    )
    add("--quiet-hours", metavar="HH:MM-HH:MM", help="local time in which it never trains")


def read_policy(options: argparse.Namespace) -> Policy:
    """Return the policy the options describe."""
    return Policy(
        min_battery_percent=options.min_battery,
        allows_metered=options.metered,
        max_other_cpu_percent=options.max_other_cpu,
        max_temperature_c=options.max_temperature,
        quiet_hours=options.quiet_hours,
    )


def run(options: argparse.Namespace, out: Console, print_json: Any) -> None:
    """Take part until the task is finished.

    Raises:
        EdgeError: It failed for good.
    """
    show = print_json if options.json else lambda facts: out.print(_round_line(facts))
    if options.now:
        _run_here(options, show)
    else:
        _run_in_background(options, out, show)


def _run_here(options: argparse.Namespace, show: Any) -> None:
    from edge_sdk.rounds.round_loop import RoundLoop

    if not options.json:
        logging.getLogger("edge_sdk").setLevel(logging.INFO)
    lock = OnlyOne(options.state)
    try:
        for done in RoundLoop(**_arguments(options)).rounds():
            show(asdict(done))
    finally:
        lock.release()


def _run_in_background(options: argparse.Namespace, out: Console, show: Any) -> None:
    def tell(event: Event) -> None:
        if event.kind == "round":
            show(event.facts)
        elif options.json:
            return
        elif event.kind == "state":
            out.print(_state_line(event.status), highlight=False)
        else:
            sys.stderr.write(f"{event.message}\n")

    client = EdgeClient(**_arguments(options), policy=read_policy(options), on_event=tell)
    with client:
        status = client.wait()
    if status.state == "failed":
        raise EdgeError("; ".join(status.reasons))


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "data": options.data,
        "server": options.server,
        "task": options.task,
        "model": options.model,
        "enrolment_token": read_token(options),
        "name": options.name,
        "state_folder": options.state,
        "allowance": read_allowance(options),
        "gate": options.gate,
        "personal": options.personal,
    }


def show_status(options: argparse.Namespace, out: Console, print_json: Any) -> None:
    """Say what the agent of a state folder is doing."""
    is_running = is_agent_running(options.state)
    status = read_status(options.state)
    if options.json:
        print_json({**asdict(status), "is_running": is_running})
        return
    if not is_running:
        out.print("no agent is running here; of the last one:")
    out.print(_state_line(status), highlight=False)
    if status.rounds_counted or status.uploaded_bytes:
        out.print(
            f"{status.rounds_counted} rounds counted, {format_bytes(status.uploaded_bytes)} sent, "
            f"{format_bytes(status.downloaded_bytes)} received"
        )
    if is_running:
        for found in status.verdicts:
            may = "may train" if found.may_train else "must wait"
            out.print(f"  {found.rule:<12} {may}: {found.reason}", highlight=False)


def leave_fleet(options: argparse.Namespace, out: Console, print_json: Any) -> None:
    """Leave the server, and forget what this device was there.

    Raises:
        AlreadyRunning: An agent is at work.
    """
    lock = OnlyOne(options.state)
    try:
        left = leave(options.state)
    finally:
        lock.release()
    if options.json:
        print_json(asdict(left))
    elif left.server is None:
        out.print("this device had joined no server")
    elif left.trouble is None:
        out.print(f"this device has left {left.server}, which refuses its key from now on")
    else:
        out.print(
            f"this device has forgotten {left.server}, which could not be told: {left.trouble}\n"
            f"its operator can have it refused: edge-server device revoke {left.device_id}",
            highlight=False,
        )


def _round_line(done: dict[str, Any]) -> str:
    is_late = "" if done["counted"] else "; it came too late and is not counted"
    return (
        f"round {done['round_number']} is done: loss {done['loss']:.3f}, {done['k']} ranks, "
        f"trained for {format_seconds(done['training_s'])}, "
        f"sent {format_bytes(done['upload_bytes'])}, "
        f"received {format_bytes(done['download_bytes'])}, "
        f"peak memory {format_bytes(done['peak_rss_bytes'])} "
        f"(planned {format_bytes(done['planned_bytes'])}){is_late}"
    )


def _state_line(status: Status) -> str:
    seconds = time.time() - status.since
    for_how_long = f", for {format_seconds(seconds)} now" if status.since and seconds >= 1 else ""
    because = f": {'; '.join(status.reasons)}" if status.reasons else ""
    return _DOING[status.state].format(status) + because + for_how_long
