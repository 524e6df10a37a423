"""Places where a test can kill this very process; for tests only, without effect otherwise."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Literal, get_args

from edge_sdk.errors import ConfigError

VARIABLE = "EDGE_SERVER_FAILPOINT"
"""Environment variable that arms one place: its name, or name:n for the n-th time it is met."""

Point = Literal[
    "before-assignment-commit",
    "after-assignment-commit",
    "before-download-commit",
    "after-download-commit",
    "before-update-kept",
    "after-update-kept",
    "before-update-commit",
    "after-update-commit",
    "before-freeze-commit",
    "after-freeze-commit",
    "before-adapter-kept",
    "after-adapter-kept",
    "before-publish-commit",
    "after-publish-commit",
]
"""Both sides of every moment at which a round becomes durable, in the order of a round."""

RelayPoint = Literal["before-sum-sent", "after-sum-sent", "after-sum-commit"]
"""The same of a relay: its upstream server counts, or counted, the sum of a round."""

POINTS: tuple[Point, ...] = get_args(Point)
RELAY_POINTS: tuple[RelayPoint, ...] = get_args(RelayPoint)

PartPoint = Literal["before-part-kept", "after-part-kept", "before-parts-removed"]
"""What only an update that comes in parts meets."""

PART_POINTS: tuple[PartPoint, ...] = get_args(PartPoint)


@dataclass(frozen=True, slots=True)
class _Armed:
    """The one place that kills, at which time it is met, and the times so far."""

    name: str
    last: int
    times: Iterator[int]


def hit(name: Point | RelayPoint | PartPoint) -> None:
    """Kill this process with SIGKILL if this place is armed and met for the n-th time.

    Raises:
        ConfigError: The environment arms a place that does not exist.
    """
    armed = _armed()
    if armed is not None and armed.name == name and next(armed.times) == armed.last:
        os.kill(os.getpid(), signal.SIGKILL)


@cache
def _armed() -> _Armed | None:
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    name, _, number = text.partition(":")
    known = (*POINTS, *RELAY_POINTS, *PART_POINTS)
    if name not in known or not (number or "1").isdecimal():
        raise ConfigError(f"{VARIABLE}={text!r} must be one of {', '.join(known)}, or NAME:COUNT")
    return _Armed(name, int(number or "1"), count(1))
