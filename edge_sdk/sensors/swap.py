"""Swap space, on disk and compressed in memory: reported, and never counted as memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_sdk.sensors.files import is_this_machine, number, text, whole
from edge_sdk.sensors.reading import Reading, ask


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapReport:
    """Swap space by where it lies.

    Attributes:
        total_bytes: Swap on disks.
        free_bytes: What of it is unused.
        zram_bytes: Swap that is memory itself, compressed; tensors hardly compress.
    """

    total_bytes: Reading[int]
    free_bytes: Reading[int]
    zram_bytes: Reading[int]


def read_swap(root: Path) -> SwapReport:
    """Read the swap areas, from Linux's list where there is one."""
    path = root / "proc/swaps"
    listed = text(path)
    if listed.value is None:
        return _without_list(root, listed.source)
    total = free = zram = 0
    for line in listed.value.splitlines()[1:]:
        words = line.split()
        size, used = [whole(word) for word in [*words[2:4], "", ""][:2]]
        if size is None or used is None:
            continue
        name = words[0].rpartition("/")[2]
        if name.startswith("zram"):
            disksize = number(root / "sys/block" / name / "disksize").value
            zram += size * 1024 if disksize is None else disksize
        else:
            total, free = total + size * 1024, free + max(0, size - used) * 1024
    source = str(path)
    return SwapReport(
        total_bytes=Reading(total, source),
        free_bytes=Reading(free, source),
        zram_bytes=Reading(zram, source),
    )


def _without_list(root: Path, reason: str) -> SwapReport:
    missing: Reading[int] = Reading(None, reason)
    if not is_this_machine(root):
        return SwapReport(total_bytes=missing, free_bytes=missing, zram_bytes=missing)
    return SwapReport(
        total_bytes=ask("psutil", lambda: int(psutil.swap_memory().total)),
        free_bytes=ask("psutil", lambda: int(psutil.swap_memory().free)),
        zram_bytes=missing,
    )
