"""Whether this process can serve: its database and its tensor files answer, and it goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from edge_sdk.errors import EdgeError, ServerBusy
from server.blobs.blobs import Blobs
from server.storage.store import Store

log = logging.getLogger(__name__)

_PATIENCE_S = 3.0
_RETRY_AFTER_S = 5.0


class Health:
    """Looks at what this process needs.

    Each place has a thread of its own for that: while it hangs, neither requests nor looks at the
    other wait for it.

    Args:
        store: Where rows are.
        blobs: Where tensors are.
        patience_s: Seconds a place may take to answer.
    """

    def __init__(self, store: Store, blobs: Blobs, patience_s: float = _PATIENCE_S) -> None:
        self._checks = {"database": store.check, "blobs": blobs.check}
        self._patience_s = patience_s
        self._threads = {
            name: ThreadPoolExecutor(1, thread_name_prefix=f"health-{name}")
            for name in self._checks
        }
        self._is_stopping = False

    def stop(self) -> None:
        """Say from now on that this process takes no more work."""
        self._is_stopping = True

    def close(self) -> None:
        """Let go of the threads."""
        self.stop()
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)

    async def check(self) -> None:
        """Return if this process can serve.

        Raises:
            ServerBusy: It cannot; says which of ``database`` and ``blobs`` is not ready, or that
                it is stopping. The cause is in the log, not in the message: anybody may ask.
        """
        if self._is_stopping:
            raise ServerBusy("not ready: the server is stopping", _RETRY_AFTER_S)
        passed = await asyncio.gather(*(self._passes(*check) for check in self._checks.items()))
        missing = [
            name for name, is_ready in zip(self._checks, passed, strict=True) if not is_ready
        ]
        if missing:
            raise ServerBusy(
                f"not ready: {' and '.join(missing)}; the server's log says why", _RETRY_AFTER_S
            )

    async def _passes(self, name: str, check: Callable[[], None]) -> bool:
        answer = asyncio.get_running_loop().run_in_executor(self._threads[name], check)
        try:
            await asyncio.wait_for(answer, self._patience_s)
        except asyncio.TimeoutError:
            log.warning("not ready: %s did not answer in %g s", name, self._patience_s)
            return False
        except EdgeError as error:
            log.warning("not ready: %s: %s", name, error)
            return False
        return True
