"""Remove the tensor files that nothing needs any more."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import groupby

from server.blobs.blobs import Blobs
from server.storage.store import Store

log = logging.getLogger(__name__)

COLLECTING = "collecting"
"""The name whose holder alone may remove blobs, or keep them all in place."""

GRACE_S = 86_400.0
"""Seconds for which a blob stays although no row refers to it: its row may be on its way."""

_LEFTOVER_AGE_S = 3600.0
_PREFIX_DIGITS = 2


class Collecting:
    """Removes blobs that no row needs, of one store at a time.

    Args:
        store: Says what is needed.
        blobs: Where the tensor files are.
        clock: Seconds since 1970.
        keep_updates_s: Seconds for which the updates of a closed round are kept.
    """

    def __init__(
        self, store: Store, blobs: Blobs, clock: Callable[[], float], keep_updates_s: float
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._keep_updates_s = keep_updates_s

    def collect(self, is_stopping: Callable[[], bool] = lambda: False) -> int:
        """Remove what is not needed, unless another replica is at it, and return how much it was.

        Adapter versions stay, with their master copies and the states of their optimizers.

        Args:
            is_stopping: Asked now and then; True ends the work early.

        Raises:
            StorageError: A blob cannot be removed; the others were, or are next time.
            ServerBusy: The database or the object store cannot be reached now.
        """
        self._blobs.remove_leftovers(_LEFTOVER_AGE_S)
        self._blobs.parts.remove_leftovers(GRACE_S)
        with self._store.exclusive(COLLECTING) as is_alone:
            removed = self._remove_all(is_stopping) if is_alone else 0
        if removed:
            log.info("%d tensor files that nothing needs any more were removed", removed)
        return removed

    def _remove_all(self, is_stopping: Callable[[], bool]) -> int:
        """Go through the blobs by the first digits of their digests, so that memory is bounded."""
        limit = self._clock() - GRACE_S
        removed = 0
        for prefix, found in groupby(self._blobs.digests(), lambda x: x[0][:_PREFIX_DIGITS]):
            if is_stopping():
                break
            old = [digest for digest, changed_at in found if changed_at < limit]
            if old:
                removed += self._remove_unneeded(prefix, old, limit)
        return removed

    def _remove_unneeded(self, prefix: str, old: list[str], limit: float) -> int:
        """Remove what is old and, looked up after that was known, not needed."""
        with self._store.read() as tx:
            needed = tx.needed_digests(prefix, self._clock() - self._keep_updates_s)
        unneeded = [digest for digest in old if digest not in needed]
        return sum(self._blobs.remove(digest, limit) for digest in unneeded)
