"""What an agent is doing, for the app that embeds it and for ``edge-sdk status``."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import msgspec

from edge_sdk.agent.eligibility import Verdict
from edge_sdk.wire.typed_json import decode_json

State = Literal[
    "stopped",
    "starting",
    "waiting",
    "fetching",
    "training",
    "sending",
    "paused",
    "retrying",
    "finished",
    "failed",
]

_FILE = "status.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An agent at one moment.

    Attributes:
        state: ``waiting`` is for the server to have work; ``paused`` is by the app or by rules,
            ``retrying`` after a failure, ``failed`` for good.
        since: Seconds since the epoch when this state began.
        reasons: Why it is paused, retrying or failed, for people.
        rules: Names of the rules that say no now; ``app`` is the embedding app.
        verdicts: What every rule of the policy says, with the value that was read.
        round_number: Present round, or the last one; 0 before the first.
        k: Ranks of it that this device trains.
        step: Local steps done in it.
        steps: Local steps it has.
        loss: Of the last step.
        rounds_counted: Rounds whose updates the server took since the start.
        uploaded_bytes: Bodies sent since the start.
        downloaded_bytes: Bodies received since the start.
        update_bytes: Body of the last update.
        version: Adapter version that this device's gate left in use, 0 for the base model alone;
            None without a gate.
        crashes: Times the training process ended by itself since the start.
        pid: Of the training process; None if there is none.
        rss_bytes: Its memory.
        server: Base address; None for the one joined before.
        task: None for the server's only one.
    """

    state: State = "stopped"
    since: float = 0.0
    reasons: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    round_number: int = 0
    k: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    rounds_counted: int = 0
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0
    update_bytes: int = 0
    version: int | None = None
    crashes: int = 0
    pid: int | None = None
    rss_bytes: int = 0
    server: str | None = None
    task: str | None = None


def write_status(state_folder: Path, status: Status) -> None:
    """Leave a status for other processes; a disk that refuses costs nobody anything.

    It is not forced to the disk: after a loss of power nothing of it is true.
    """
    partial = state_folder / f"{_FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(asdict(status)), encoding="utf-8")
        partial.replace(state_folder / _FILE)


def read_status(state_folder: Path) -> Status:
    """Return the last status an agent left; ``stopped`` without one that can be read."""
    try:
        return decode_json((state_folder / _FILE).read_bytes(), Status)
    except (OSError, ValueError, msgspec.DecodeError):
        return Status(since=time.time())
