"""A limit on the bytes per second of one direction, and request bodies that keep to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO

from edge_sdk.errors import ConfigError

LEAST_BYTES_PER_S = 4096
"""A server gives up on a body that comes more slowly than 1 KiB/s."""

_BURST_S = 0.25


class Bandwidth:
    """Bytes that may be moved: a bucket that fills at a steady rate.

    Args:
        bytes_per_s: The limit; None is none.
        clock: Seconds, steady.
        sleep: Waits for seconds.

    Attributes:
        moved_bytes: All that was moved so far, what was sent again included.

    Raises:
        ConfigError: The limit is below 4 KiB/s.
    """

    def __init__(
        self,
        bytes_per_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if bytes_per_s is not None and not bytes_per_s >= LEAST_BYTES_PER_S:
            raise ConfigError(
                f"a bandwidth of {bytes_per_s} bytes/s is too little for a round: allow at least "
                f"{LEAST_BYTES_PER_S}, or leave the limit away"
            )
        self._rate = bytes_per_s
        self._clock, self._sleep = clock, sleep
        self._free_at = 0.0
        self.moved_bytes = 0

    def take(self, amount: int) -> None:
        """Count bytes that are moved now, after a wait if there were too many before."""
        self.moved_bytes += amount
        if self._rate is None:
            return
        now = self._clock()
        self._free_at = max(self._free_at, now - _BURST_S) + amount / self._rate
        if self._free_at > now:
            self._sleep(self._free_at - now)


class PacedBody(BytesIO):
    """A request body that is read no faster than the link may send it.

    It is a file because bytes would have to be gone in one timeout.

    Args:
        body: All of it.
        bandwidth: Of the way up.
    """

    def __init__(self, body: bytes | memoryview, bandwidth: Bandwidth) -> None:
        super().__init__(body)
        self._bandwidth = bandwidth

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes when they may be sent."""
        chunk = super().read(size)
        self._bandwidth.take(len(chunk))
        return chunk
