"""Make the C library's heap hold what is in use and no more."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1  # from malloc.h
_M_MMAP_THRESHOLD = -3
_OWN_MAPPING_BYTES = 32768
_LARGEST_THRESHOLD = 32 << 20  # that glibc takes


def allocate_exactly() -> None:
    """Give every block from 32 KiB a mapping of its own; does nothing where glibc is not.

    By itself glibc raises that size to 32 MB as blocks are freed. Tensors then live in a heap
    whose gaps grow with every step: the peak is up to 60 % higher, and nobody can predict it.
    The price is fresh pages for every large tensor.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _OWN_MAPPING_BYTES)


def allocate_fast() -> None:
    """Undo :func:`allocate_exactly`: keep freed pages, where nobody has to predict the peak."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Return freed heap pages to the system; does nothing where glibc is not."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library, such as musl
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
