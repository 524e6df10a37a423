"""How often one device or address may ask, counted in the memory of one process."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable

from fastapi import Request

from edge_sdk.errors import TooManyRequests

_WINDOW_S = 60.0
_ROUNDING_S = 1e-6
_FORGET_ABOVE = 1024
_NETWORK_BITS = 64  # of an IPv6 address; the rest is its holder's to choose


class RateLimit:
    """A minute's requests at once, and then one at a time, evenly.

    One number is kept for each key that asked within the last minute. Replicas do not know of
    each other's: behind N of them a limit is up to N times as large.

    Args:
        per_min: Requests one key may make in a minute.
        clock: Seconds from any start.
    """

    def __init__(self, per_min: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_min = per_min
        self._interval_s = _WINDOW_S / per_min
        self._clock = clock
        self._lock = threading.Lock()
        self._rested_at: dict[str, float] = {}  # when a key will have its whole minute again
        self._forget_above = _FORGET_ABOVE

    def take(self, key: str) -> None:
        """Count one request.

        Raises:
            TooManyRequests: It is one too many; says when it would not be.
        """
        with self._lock:
            now = self._clock()
            rested_at = max(now, self._rested_at.get(key, now)) + self._interval_s
            wait_s = rested_at - now - _WINDOW_S
            if wait_s <= _ROUNDING_S:
                self._rested_at[key] = rested_at
                self._forget(now)
                return
        raise TooManyRequests(
            f"more than {self._per_min} requests in a minute: come back in {wait_s:.1f} s",
            retry_after_s=wait_s,
        )

    def _forget(self, now: float) -> None:
        """Drop the keys that have rested, whenever there are twice as many as there were left."""
        if len(self._rested_at) <= self._forget_above:
            return
        self._rested_at = {key: at for key, at in self._rested_at.items() if at > now}
        self._forget_above = max(_FORGET_ABOVE, 2 * len(self._rested_at))


def address_of(request: Request) -> str:
    """Return whom a request is counted for: an IPv4 address, or the network of an IPv6 one."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    return str(ipaddress.ip_network((int(address), _NETWORK_BITS), strict=False))
