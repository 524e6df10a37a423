"""The end of a round, by a clock that goes on while the device sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

_WARM_UP_STEPS = 1  # the first step pages the weights in


def elapsed_s() -> float:
    """Return seconds that never go back and count the time a device is asleep, where known."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Deadline:
    """When a round ends.

    Args:
        left_s: Seconds until then.
        clock: Seconds that never go back.
    """

    def __init__(self, left_s: float, clock: Callable[[], float] = elapsed_s) -> None:
        self._clock = clock
        self._end_s = clock() + left_s

    def left_s(self) -> float:
        """Return the seconds left; 0 once it is past."""
        return max(0.0, self._end_s - self._clock())

    def is_out_of_reach(self, step_s: Sequence[float], steps_left: int) -> bool:
        """Tell whether so many more steps end too late if they take as long as those before.

        A single step tells nothing: the first one is slower than the others.
        """
        usual = step_s[_WARM_UP_STEPS:]
        return bool(usual) and median(usual) * steps_left > self.left_s()
