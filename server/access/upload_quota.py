"""How many bytes one device may send in a day, counted in the database for all replicas."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from fastapi.concurrency import run_in_threadpool

from edge_sdk.errors import EdgeError, QuotaExceeded
from server.storage.store import Store

_DAY_S = 86_400


def day_of(now: float) -> int:
    """Return the day (UTC) of a moment, both counted from 1970."""
    return int(now // _DAY_S)


@dataclass(slots=True)
class Meter:
    """What came of one body so far."""

    received_bytes: int = 0

    async def counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the parts of the body as they come, counted."""
        async for chunk in chunks:
            self.received_bytes += len(chunk)
            yield chunk


class UploadQuota:
    """Bytes of updates per device and day (UTC); what is refused or repeated counts too.

    An accepted update is counted by its own row, so that only uploads that came to nothing cost
    a further write. What is under way counts in full, so that uploads side by side get no more
    than one after the other.

    Args:
        store: Where updates are.
        clock: Seconds since 1970.
        bytes_per_day: What one device may send.
    """

    def __init__(self, store: Store, clock: Callable[[], float], bytes_per_day: int) -> None:
        self._store = store
        self._clock = clock
        self._bytes_per_day = bytes_per_day
        self._under_way: Counter[str] = Counter()  # bytes by device, on this process

    @asynccontextmanager
    async def metered(
        self,
        device_id: str,
        task: str,
        number: int,
        coming_bytes: int,
        *,
        is_part: bool = False,
    ) -> AsyncIterator[Meter]:
        """Let an upload in if the day has room for it, and count what comes of it.

        Args:
            device_id: Who sends it.
            task: Name of the task.
            number: Of the round.
            coming_bytes: What it announced, or the most it may have.
            is_part: Of an update in parts: counted at once, and taken off when the whole is
                accepted, which counts by its own row.

        Raises:
            QuotaExceeded: The day has no room; before anything is read.
        """
        self._under_way[device_id] += coming_bytes
        all_coming_bytes = self._under_way[device_id]
        meter, is_wasted = Meter(), True
        try:
            is_repeated = await run_in_threadpool(
                self.check, device_id, task, number, all_coming_bytes
            )
            yield meter
            is_wasted = is_repeated or is_part
        finally:
            try:
                if is_wasted and meter.received_bytes:
                    with suppress(EdgeError):  # it must not hide why the upload failed
                        await run_in_threadpool(self._waste, device_id, meter.received_bytes)
            finally:
                self._end(device_id, coming_bytes)

    def _end(self, device_id: str, coming_bytes: int) -> None:
        self._under_way[device_id] -= coming_bytes
        if not self._under_way[device_id]:
            del self._under_way[device_id]

    def check(self, device_id: str, task: str, number: int, coming_bytes: int) -> bool:
        """Say whether an upload repeats an accepted one, if the day has room for it.

        Raises:
            QuotaExceeded: It has none.
        """
        now = self._clock()
        day = day_of(now)
        with self._store.read() as tx:
            sent = tx.upload_bytes(device_id, day)
            is_repeated = tx.accepted(task, number, device_id) is not None
        if sent + coming_bytes > self._bytes_per_day:
            raise QuotaExceeded(
                f"this device sent {sent} bytes today and would send {coming_bytes} more; it may "
                f"send {self._bytes_per_day} a day: come back tomorrow (UTC)",
                retry_after_s=(day + 1) * _DAY_S - now,
            )
        return is_repeated

    def _waste(self, device_id: str, size_bytes: int) -> None:
        with self._store.write() as tx:
            tx.add_wasted_bytes(device_id, day_of(self._clock()), size_bytes)
