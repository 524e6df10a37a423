"""Give memory that was freed back to the system."""

from __future__ import annotations

import ctypes
import sys


def release_freed_memory() -> None:
    """Return freed heap pages; does nothing where the C library cannot.

    Loading a model frees hundreds of megabytes of intermediate copies, which glibc keeps for
    the process unless it is asked.
    """
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library, such as musl
        return
