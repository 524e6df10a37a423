"""Fetch an adapter in a process that ends with it, so that the host app imports nothing heavy."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sdk.errors import EdgeError, StorageError, by_code

_RECORD = "serving.json"
PATIENCE_S = 15.0
"""How long somebody who asked for an adapter waits for a server that does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """An adapter folder that is ready to be used.

    Attributes:
        version: Of the adapter.
        base: Folder of the base model it belongs to.
    """

    version: int
    base: Path


def pull_adapter(
    settings: dict[str, Any], state_folder: Path, folder: Path, *, may_be_old: bool = False
) -> Pulled:
    """Write the adapter this device shall use into a folder.

    Args:
        settings: Of the training process.
        state_folder: Remembers what is in the folder.
        folder: A PEFT folder, replaced.
        may_be_old: Whether one that was fetched before will do.

    Raises:
        EdgeError: As :meth:`edge_sdk.rounds.membership.Membership.pull_or_base` raises it.
    """
    known = _read_record(state_folder) if folder.is_dir() else None
    if may_be_old and known is not None:
        return known
    order = {"pull_to": str(folder), "outage_patience_s": PATIENCE_S, "parent_pid": os.getpid()}
    told = _run({**settings, **order})
    found = Pulled(version=told["version"], base=Path(told["base"]))
    record = {"version": found.version, "base": str(found.base)}
    try:
        (state_folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{state_folder} cannot be written: {error}") from error
    return found


def _run(settings: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "edge_sdk.agent.trainer"],
        input=json.dumps(settings).encode() + b"\n",
        capture_output=True,
        check=False,
    )
    for told in _events(done.stdout):
        if told.get("event") == "pulled":
            return told
        if told.get("event") == "failed":
            raise by_code().get(told["code"], EdgeError)(told["message"])
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [""]
    raise EdgeError(f"fetching the adapter ended with status {done.returncode}: {last[0]}")


def _events(said: bytes) -> Iterator[dict[str, Any]]:
    for line in said.splitlines():
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict):
                yield told


def _read_record(state_folder: Path) -> Pulled | None:
    try:
        found = json.loads((state_folder / _RECORD).read_text(encoding="utf-8"))
        known = Pulled(version=int(found["version"]), base=Path(found["base"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return known if known.base.is_dir() else None
