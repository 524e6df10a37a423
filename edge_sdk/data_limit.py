"""A hard limit on the memory of this process, which ends in an exception, not in a kill (Linux).

The kernel limits address space, a budget limits memory in use, so one is translated into the
other. ``RLIMIT_DATA`` bounds VmData: every private writable mapping, the heap as well as ``mmap``.
An allocation beyond it fails, which NumPy raises as ``MemoryError`` and torch as ``RuntimeError``.

Counted against the budget is all resident memory (VmRSS), as a plan predicts it and a process list
shows it, and what was swapped out. Mapped files count where they are resident: the kernel could
drop them, but frozen weights would be read again in every step.

The room left is the budget minus what is used, so the limit is VmData plus that room, less the
address space that could come to life without asking the kernel: memory that ``malloc`` took and
gave back page by page, and buffers reserved and not written yet. In VmData it already has its
place, so whoever grants its room once more is overrun by as much. Only two kinds of untouched
address space are taken for dead: what was untouched when the limit was set, outside the heaps
(thread stacks, the reserve of a BLAS), and the stacks of threads started since.

The failed allocation should be a tensor's: interpreter and libraries take small pieces, some
without looking whether they got them, so a step only begins with ``MARGIN_BYTES`` to spare.
Likewise an import that fails half-way leaves a broken module, and an OpenMP pool that cannot
start ends the process: both belong before the limit.

Between two checks nothing counts pages of libraries and of files mapped read-only, shared memory,
and what was untouched at the start and no longer is: some megabytes, for which ``MARGIN_BYTES``
are held back. The next check counts them.
"""

from __future__ import annotations

import errno
import mmap
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edge_sdk.heap import release_freed_memory
from edge_sdk.watchdog import over_budget

MARGIN_BYTES = 8 << 20
"""Of the budget, held back for what nothing counts, and left for a step to begin with."""

_PROCESS = Path("/proc/self")
_HEAP_ALIGNMENT = 64 << 20  # glibc starts the heap of a thread at a multiple of this
_DEFAULT_STACK = 2 << 20  # of a thread, where stacks are not limited
_TRIAL_ROOM, _TRIAL_SIZE = 32 << 20, 48 << 20  # small: it must fit every device
_WRITABLE_FILE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ [1-9]", re.MULTILINE)
_MAPPING = re.compile(r"^([0-9a-f]+)-[0-9a-f]+ (\S+) \S+ \S+ (\d+) *(.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Memory of this process.

    Attributes:
        used_bytes: Resident or swapped out: what a budget limits.
        written_bytes: The part of it that no file can give back.
        data_bytes: Private writable address space (VmData): what the kernel limits.
        threads: Running threads.
    """

    used_bytes: int
    written_bytes: int
    data_bytes: int
    threads: int


class DataLimit:
    """Keeps this process within a budget while it is entered; leaving restores what was before.

    Args:
        budget_bytes: Memory this process may use in total, libraries included.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._previous = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        self._soft = resource.RLIM_INFINITY
        self._dead_bytes = 0
        self._threads = 1

    def __enter__(self) -> DataLimit:
        self._previous = resource.getrlimit(resource.RLIMIT_DATA)
        self._soft = self._previous[0]
        self._dead_bytes, self._threads = _untouched_bytes(), read_usage().threads
        self.check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, self._previous)

    def check(self) -> None:
        """Set the limit anew from what is used now.

        A limit that somebody else has set since, such as another guard within this one, stays.

        Raises:
            OutOfMemory: Less than ``MARGIN_BYTES`` of the budget are left; the limit stays as
                it was.
        """
        usage = self._usage_within_budget()
        if resource.getrlimit(resource.RLIMIT_DATA)[0] != self._soft:
            return
        most = self._budget_bytes - MARGIN_BYTES
        room = most - usage.used_bytes - self._reusable_bytes(usage)
        previous, hard = self._previous
        soft = usage.data_bytes + max(room, MARGIN_BYTES)
        self._soft = soft if previous == resource.RLIM_INFINITY else min(soft, previous)
        resource.setrlimit(resource.RLIMIT_DATA, (self._soft, hard))

    def _usage_within_budget(self) -> Usage:
        usage, most = read_usage(), self._budget_bytes - MARGIN_BYTES
        if usage.used_bytes > most:
            release_freed_memory()
            usage = read_usage()
        if usage.used_bytes > most:
            raise over_budget(usage.used_bytes, self._budget_bytes)
        return usage

    def _reusable_bytes(self, usage: Usage) -> int:
        """Address space that may come to life within VmData, so has its room there already."""
        dead = self._dead_bytes + max(0, usage.threads - self._threads) * _stack_bytes()
        reusable = usage.data_bytes - usage.written_bytes - dead
        # Weights mapped from a file are in VmData; where resident, they count as used already.
        return max(0, reusable - _writable_file_bytes()) if reusable > 0 else 0


def is_enforced() -> bool:
    """Say whether this system refuses memory beyond the limit, by trying.

    Older kernels limit only the heap, some sandboxes nothing, and neither says so.
    """
    if sys.platform != "linux":
        return False
    try:
        data_bytes = read_usage().data_bytes
        previous, hard = resource.getrlimit(resource.RLIMIT_DATA)
        trial = data_bytes + _TRIAL_ROOM
        if previous != resource.RLIM_INFINITY:
            trial = min(trial, previous)
        resource.setrlimit(resource.RLIMIT_DATA, (trial, hard))
    except (OSError, ValueError, KeyError):
        return False
    try:
        return _is_refused(_TRIAL_SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (previous, hard))


def _is_refused(size: int) -> bool:
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        return error.errno == errno.ENOMEM
    return False


def read_usage() -> Usage:
    """Read what the kernel counts for this process; some 30 microseconds.

    Raises:
        OSError: There is no such file.
        KeyError: This kernel does not count one of them.
    """
    fields = {}
    for line in (_PROCESS / "status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "Threads" or value.endswith("kB"):
            fields[name] = int(value.split()[0])
    swapped = fields.get("VmSwap", 0)
    return Usage(
        used_bytes=(fields["VmRSS"] + swapped) * 1024,
        written_bytes=(fields["RssAnon"] + swapped) * 1024,
        data_bytes=fields["VmData"] * 1024,
        threads=fields["Threads"],
    )


def _untouched_bytes() -> int:
    """Private writable address space without memory behind it, outside the heaps and files."""
    untouched, is_counted = 0, False
    for line in (_PROCESS / "smaps").read_text(encoding="utf-8").splitlines():
        if mapping := _MAPPING.match(line):
            start, rights, inode, name = mapping.groups()
            is_heap = name == "[heap]" or int(start, 16) % _HEAP_ALIGNMENT == 0
            is_counted = rights == "rw-p" and inode == "0" and name != "[stack]" and not is_heap
        elif is_counted:
            name, _, value = line.partition(":")
            if name == "Size":
                untouched += int(value.split()[0])
            elif name in ("Anonymous", "Swap"):
                untouched -= int(value.split()[0])
    return untouched * 1024


def _writable_file_bytes() -> int:
    maps = (_PROCESS / "maps").read_bytes()
    return sum(int(end, 16) - int(start, 16) for start, end in _WRITABLE_FILE.findall(maps))


def _stack_bytes() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return _DEFAULT_STACK if soft == resource.RLIM_INFINITY else soft
