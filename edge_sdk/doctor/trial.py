"""Try one library in a process of its own: it may crash, hang or take all memory."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec

from edge_sdk.doctor.finding import Finding
from edge_sdk.wire.typed_json import decode_json

PATIENCE_S = 90.0
"""A slow board imports torch for a minute."""

_REINSTALL = "reinstall it for this machine: another build crashes on this processor or driver"


def try_library(
    check: str, *, module: str = "edge_sdk.doctor.trials", patience_s: float = PATIENCE_S
) -> Finding:
    """Run one trial and return what it found, or how it ended.

    Args:
        check: Name of the trial, see :mod:`edge_sdk.doctor.trials`.
        module: What is run, with the name as its argument; prints a finding as its last line.
        patience_s: After which it is killed.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", module, check],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(
            check=check,
            outcome="fail",
            found=f"no answer within {patience_s:.0f} s",
            fix="try again when the machine is idle; if it stays so, reinstall the library",
        )
    except OSError as error:
        return Finding(
            check=check,
            outcome="fail",
            found=f"no process can be started: {error}",
            fix="free memory, or raise the limit on processes of this user",
        )
    lines = done.stdout.splitlines()
    try:
        return decode_json(lines[-1] if lines else b"", Finding)
    except msgspec.DecodeError:
        return Finding(check=check, outcome="fail", found=_how_it_ended(done), fix=_REINSTALL)


def _how_it_ended(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"crashed with signal {-done.returncode}"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return said[-1][:200] if said else f"ended with status {done.returncode}"
