"""Run the small programs some readings need; a program that hangs or is missing is no answer."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence

_PATIENCE_S = 3.0

Run = Callable[[Sequence[str]], "str | None"]
"""Runs a command and returns what it printed, or None: not installed, failed, or too slow."""


def run_command(command: Sequence[str]) -> str | None:
    """Run a program from PATH with 3 s to answer and return what it printed."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        process = subprocess.Popen(  # noqa: S603 - no shell; every command line is a constant
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, ValueError):
        return None
    try:
        output, _ = process.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        _abandon(process)
        return None
    return output if process.returncode == 0 else None


def run_nothing(command: Sequence[str]) -> str | None:
    """Answer no command: for a captured machine, where this machine's programs say nothing."""
    return None


def _abandon(process: subprocess.Popen[str]) -> None:
    """Kill a program without waiting for it: one stuck in a driver cannot even be killed."""
    process.kill()
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return
    finally:
        if process.stdout:
            process.stdout.close()
