"""Run one measurement in a process of its own: nothing another one left behind is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_TIMEOUT_S = 1800.0
_LINES = 12


def measure_fresh(
    module: str,
    request: Any,
    answer: type[T],
    threads: int,
    *,
    environment: Mapping[str, str] | None = None,
    enter: Callable[[], None] | None = None,
) -> T:
    """Give a module its request as JSON, and decode the last line it prints.

    Args:
        module: Run as ``python -m module JSON``.
        request: What to measure.
        answer: What the module prints.
        threads: CPU threads of every library, from the start of the process.
        environment: Variables it gets on top of the present ones.
        enter: Called in it before anything else, such as to enter a control group.

    Raises:
        SystemExit: The process failed, took too long or printed something else; says what the
            request was and how the process ended.
    """
    text = msgspec.json.encode(request).decode()
    own = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **(environment or {})}
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, text],
            capture_output=True,
            text=True,
            env={**os.environ, **own},
            preexec_fn=enter,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{module} {text} took more than {_TIMEOUT_S:.0f} s") from None
    lines = done.stdout.splitlines()
    said = "\n".join(done.stderr.strip().splitlines()[-_LINES:])
    if done.returncode != 0 or not lines:
        raise SystemExit(f"{module} {text} ended with status {done.returncode}:\n{said}")
    try:
        return msgspec.json.decode(lines[-1], type=answer)
    except msgspec.DecodeError as error:
        raise SystemExit(f"{module} {text} printed {lines[-1]!r} ({error}):\n{said}") from None
