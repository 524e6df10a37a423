"""Writes of the journal at which a test can take this very process its power; for tests only."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Literal, get_args

from edge_sdk.errors import ConfigError

VARIABLE = "EDGE_AGENT_FAILPOINT"
"""Environment variable that arms one write, the n-th of its kind: ``POINT:N:LEFT``."""

Point = Literal["work", "progress", "update", "removal"]
"""A file of the journal that is written, or any of them that is removed."""

Left = Literal["nothing", "partial", "empty", "half", "most", "whole"]
"""What the disk holds afterwards: no trace, half of a file under another name, or under its own
name an empty one, half of it, all but its last byte, or all of it."""

_SHARES: dict[str, float] = {"partial": 0.5, "empty": 0.0, "half": 0.5, "most": 1.0, "whole": 1.0}


@dataclass(frozen=True, slots=True)
class _Armed:
    """The one write that fails, its number, what it leaves, and the writes of its kind so far."""

    point: str
    last: int
    left: str
    times: Iterator[int]


def lose_power(point: Point, path: Path, parts: Sequence[bytes | memoryview] = ()) -> None:
    """Kill this process with SIGKILL, after leaving what is asked for, if this write is armed.

    Raises:
        ConfigError: The environment arms a write that does not exist.
    """
    armed = _armed()
    if armed is None or armed.point != point or next(armed.times) != armed.last:
        return
    if armed.left != "nothing":
        content = b"".join(parts)
        size = int(len(content) * _SHARES[armed.left]) - (armed.left == "most")
        place = path.with_suffix(".1") if armed.left == "partial" else path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content[:size])
    os.kill(os.getpid(), signal.SIGKILL)


@cache
def _armed() -> _Armed | None:
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    point, number, left = [*text.split(":"), "", ""][:3]
    if point not in get_args(Point) or left not in get_args(Left) or not number.isdecimal():
        raise ConfigError(
            f"{VARIABLE}={text!r} must be POINT:N:LEFT, with POINT one of "
            f"{', '.join(get_args(Point))} and LEFT one of {', '.join(get_args(Left))}"
        )
    return _Armed(point, int(number), left, count(1))
