"""Keep the C library from holding on to memory that a server has freed."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1  # from malloc.h
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_OWN_MAPPING_BYTES = 1 << 20
_KEPT_BYTES = 32 << 20


def share_one_heap() -> None:
    """Let all threads allocate from one heap, and bodies beside it; nothing where glibc is not.

    By itself glibc gives every few threads a heap of their own, and keeps tens of megabytes of
    each for bodies to come: what a server holds then depends on which threads served whom. Call
    it before the first thread starts.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library, such as musl
        return
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
