"""Checks of the state folder: writable, private, with room, and with one agent."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from edge_sdk.agent.only_one import is_agent_running
from edge_sdk.doctor.finding import Finding
from edge_sdk.quantities import format_bytes

_LITTLE_BYTES, _TOO_LITTLE_BYTES = 2 << 30, 256 << 20
_SECRETS = ("device.json", "joining.json")


def check_folder(folder: Path) -> list[Finding]:
    """Look at a state folder, which need not exist yet, and change nothing in it."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return [_writable(folder, there), _disk(there), _private(folder), _agent(folder)]


def _writable(folder: Path, there: Path) -> Finding:
    if not there.is_dir():
        return Finding(
            check="state folder",
            outcome="fail",
            found=f"{there} is a file",
            fix="move it away, or name another folder with --state",
        )
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return Finding(
            check="state folder",
            outcome="fail",
            found=f"{there} cannot be written: {error.strerror or error}",
            fix="make it this user's with chown, or name another folder with --state",
        )
    found = str(folder) if folder.exists() else f"{folder} will be made"
    return Finding(check="state folder", outcome="ok", found=found)


def _disk(there: Path) -> Finding:
    free = shutil.disk_usage(there).free
    found = f"{format_bytes(free)} are free"
    if free >= _LITTLE_BYTES:
        return Finding(check="disk", outcome="ok", found=found)
    return Finding(
        check="disk",
        outcome="fail" if free < _TOO_LITTLE_BYTES else "warn",
        found=found,
        fix=f"free {format_bytes(_LITTLE_BYTES)} on the disk of {there}",
    )


def _private(folder: Path) -> Finding:
    files = [folder / name for name in _SECRETS if (folder / name).exists()]
    if os.name != "posix" or not files:
        found = "this device has not joined a server" if not files else "not a POSIX system"
        return Finding(check="private key", outcome="skipped", found=found)
    for path in files:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            return Finding(
                check="private key",
                outcome="fail",
                found=f"others may read {path} (mode {mode:03o})",
                fix=f"chmod 600 {path}; if others use this machine, also: edge-sdk change-key",
            )
    return Finding(check="private key", outcome="ok", found="only this user can read it")


def _agent(folder: Path) -> Finding:
    """Only look at a lock that is there: asking for one would make it."""
    if (folder / "agent.lock").exists() and is_agent_running(folder):
        return Finding(check="agent", outcome="ok", found="one agent is at work here")
    return Finding(
        check="agent", outcome="ok", found="no agent is at work: edge-sdk run starts one"
    )
