"""The few threads in which whole tensor bodies are in memory, whatever the number of devices."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

_AT_ONCE = 2

Result = TypeVar("Result")


class TensorThreads:
    """Work on tensor bodies, of all requests, two at a time; the others wait outside any thread.

    So memory does not grow with the devices that come at once, small requests find a free thread,
    and what the C library keeps of freed memory, thread by thread, is kept twice only.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tensors")

    async def run(self, do: Callable[..., Result], *given: object) -> Result:
        """Call a function in one of the threads, under the id of the present request."""
        context = contextvars.copy_context()
        call = partial(context.run, do, *given)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Let the threads end what they are at, and wait for them."""
        self._pool.shutdown()
