"""The training process: one round after the other, told to the agent as lines of JSON.

Started by an agent with ``python -m edge_sdk.agent.trainer``; the first line of its standard input
says what to do. Training ends when the input does; an errand, to fetch the adapter for use, ends by
itself. Of all the processes of an embedding
app only this one imports torch.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from edge_sdk.agent.background import end_with, end_with_parent, yield_to_others
from edge_sdk.errors import (
    ConfigError,
    DataError,
    EdgeError,
    ModelError,
    NotAuthorized,
    ProtocolMismatch,
    Revoked,
    ServerBusy,
    ServerUnreachable,
    UntrustedAdapter,
)
from edge_sdk.planning.allowance import Allowance

_FOR_GOOD = (
    ConfigError,
    DataError,
    ModelError,
    NotAuthorized,
    ProtocolMismatch,
    Revoked,
    UntrustedAdapter,
)
"""Failures that no waiting mends."""


class Events:
    """Lines of JSON to the agent, one for each thing that happens.

    Args:
        out: Where they go.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._writing = threading.Lock()

    def tell(self, kind: str, **facts: Any) -> None:
        """Write one event."""
        line = json.dumps({"event": kind, **facts}).encode() + b"\n"
        with self._writing:
            self._out.write(line)
            self._out.flush()


class _Told(logging.Handler):
    """Passes log records on as events."""

    def __init__(self, events: Events) -> None:
        super().__init__(logging.INFO)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.tell("log", level=record.levelname, message=record.getMessage())


def main() -> int:
    """Do what the first line says; return 0 when it is done, 1 after an error of ours."""
    settings = json.loads(sys.stdin.buffer.readline() or b"null")
    if not isinstance(settings, dict):
        sys.stderr.write("this process is started by an agent: use edge-sdk run\n")
        return 2
    is_errand = "pull_to" in settings
    if settings.pop("yields", False):
        yield_to_others()
    end_with_parent(settings.pop("parent_pid"))
    events = _own_stdout()
    events.tell("starting")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("edge_sdk").addHandler(_Told(events))
    if not is_errand:
        end_with(sys.stdin.fileno())
    try:
        _work(settings, events)
    except EdgeError as error:
        events.tell(
            "failed",
            code=error.code,
            message=str(error),
            is_for_good=isinstance(error, _FOR_GOOD),
            is_outage=isinstance(error, (ServerUnreachable, ServerBusy)),
        )
        return 1
    return 0


def _work(settings: dict[str, Any], events: Events) -> None:
    from edge_sdk.inference.ahead import convert_ahead
    from edge_sdk.rounds.round_loop import RoundLoop

    pull_to = settings.pop("pull_to", None)
    allowance = Allowance(**settings.pop("allowance", {}))
    loop = RoundLoop(**settings, allowance=allowance, on_phase=events.tell)
    if pull_to is not None:
        membership, folder = loop.membership, Path(pull_to)
        version, base = membership.pull_or_base(folder), membership.base_folder
        convert_ahead(folder, base)
        events.tell("pulled", version=version, base=str(base))
        return
    for done in loop.rounds():
        events.tell("round", **asdict(done))
    events.tell("finished")


def _own_stdout() -> Events:
    """Take stdout for events alone: what a library prints goes to stderr from now on."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return Events(out)


if __name__ == "__main__":
    sys.exit(main())
