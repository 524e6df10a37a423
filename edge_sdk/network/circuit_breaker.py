"""Leaves a server alone that does not answer: no traffic until a probe is due."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from edge_sdk.errors import ServerUnreachable

_FAILURES = 5
_SINCE_S = 5.0
_FIRST_S = 1.0
_LONGEST_S = 60.0


class CircuitBreaker:
    """Counts failures in a row: five, over five seconds, and only a probe passes now and then.

    The wait before the first probe is about a second and doubles up to a minute, each time
    between half and all of that, so that a fleet does not come back at once.

    Args:
        clock: Seconds, steady.
        jitter: Returns a number from 0 to 1.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock, self._jitter = clock, jitter
        self._failures = self._probes = 0
        self._first_at = self._probe_at = 0.0

    @property
    def is_open(self) -> bool:
        """Say whether the server is being left alone."""
        return self._probes > 0

    @property
    def probe_in_s(self) -> float:
        """Return the seconds until the next request may be sent; 0 if one may be now."""
        return max(0.0, self._probe_at - self._clock()) if self.is_open else 0.0

    def check(self) -> None:
        """Let a request pass.

        Raises:
            ServerUnreachable: The next probe is not due.
        """
        wait_s = self.probe_in_s
        if wait_s > 0:
            raise ServerUnreachable(
                f"the server did not answer {self._failures} times in a row: it is asked again in "
                f"{wait_s:.1f} s"
            )

    def succeed(self) -> None:
        """Note that the server answered, whatever it said."""
        self._failures = self._probes = 0

    def fail(self) -> None:
        """Note that it did not."""
        now = self._clock()
        if self._failures == 0:
            self._first_at = now
        self._failures += 1
        if self._failures >= _FAILURES and now - self._first_at >= _SINCE_S:
            longest_s = min(_LONGEST_S, _FIRST_S * 2 ** min(self._probes, 16))
            self._probe_at = now + longest_s * (1 + self._jitter()) / 2
            self._probes += 1
