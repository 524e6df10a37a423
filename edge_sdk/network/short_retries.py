"""Repeats a request at once, or almost: the outages of seconds; longer ones are the caller's."""

from __future__ import annotations

import random
from typing import Any, TypeVar

from urllib3.exceptions import InvalidHeader, MaxRetryError
from urllib3.util import Retry

_LONGEST_BACKOFF_S = 5.0
_LONGEST_RETRY_AFTER_S = 5.0
_FIRST_BACKOFF_S = 0.6

_Retries = TypeVar("_Retries", bound="ShortRetries")


class ShortRetries(Retry):
    """Full jitter up to five seconds; a server that asks for longer is answered to the caller.

    429 is left to the caller, too: a quota may ask for hours, which nobody sleeps through here.
    """

    RETRY_AFTER_STATUS_CODES = frozenset({503})

    def get_backoff_time(self) -> float:
        """Return a wait between nothing and twice as much as the last time, at most."""
        ceiling_s = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** max(0, len(self.history) - 1))
        return random.uniform(0.0, ceiling_s)  # noqa: S311 - jitter

    def increment(self: _Retries, *args: Any, **named: Any) -> _Retries:
        """Count an attempt, or give up where the server asks for a long wait."""
        response = named.get("response")
        if response is not None:
            try:
                wait_s = self.get_retry_after(response) or 0.0
            except InvalidHeader:
                wait_s = _LONGEST_RETRY_AFTER_S + 1
            if wait_s > _LONGEST_RETRY_AFTER_S:
                raise MaxRetryError(named["_pool"], str(args[1]))
        return super().increment(*args, **named)


def short_retries(attempts: int) -> ShortRetries:
    """Return how often a request is repeated that got no answer, or 502, 503 or 504."""
    return ShortRetries(
        total=attempts,
        status_forcelist=(502, 503, 504),
        allowed_methods=None,
        raise_on_status=False,
        respect_retry_after_header=True,
    )
