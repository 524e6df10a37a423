"""Which blobs the rows refer to: what a transaction can say about it."""

from __future__ import annotations

from typing import Protocol


class ReferenceTransaction(Protocol):
    """The blobs that are still needed."""

    def needed_digests(self, prefix: str, closed_before: float) -> set[str]:
        """Return the digests of all needed blobs that begin with a prefix.

        Needed is what any adapter version consists of, and every update whose round is not
        closed, or not for long.

        Args:
            prefix: The first hex digits; empty means all.
            closed_before: Seconds since 1970; updates of rounds closed earlier are not needed.
        """
