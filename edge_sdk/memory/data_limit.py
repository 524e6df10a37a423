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

from edge_sdk.memory.heap import release_freed_memory
from edge_sdk.memory.watchdog import over_budget

MARGIN_BYTES = 8 << 20
"""Of the budget, held back for what nothing counts, and left for a step to begin with."""

_PROCESS = Path("/proc/self")
_HEAP_ALIGNMENT = 64 << 20  # glibc starts the heap of a thread at a multiple of this
_DEFAULT_STACK = 2 << 20  # of a thread, where stacks are not limited
_TRIAL_ROOM, _TRIAL_SIZE = 32 << 20, 48 << 20  # small: it must fit every device
_WRITABLE_FILE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ [1-9]", re.MULTILINE)
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+) *(.*)$")


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


@dataclass(slots=True)
class _Mapping:
    """Address space from ``start`` to ``end`` (bytes), and how much of it was written."""

    start: int
    end: int
    rights: str
    inode: int
    name: str
    written_bytes: int = 0


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
    mappings = _read_mappings()
    following = [*mappings[1:], None]
    return sum(
        mapping.end - mapping.start - mapping.written_bytes
        for mapping, after in zip(mappings, following, strict=True)
        if mapping.rights == "rw-p"
        and mapping.inode == 0
        and mapping.name not in ("[heap]", "[stack]")
        and not _is_heap_of_a_thread(mapping, after)
    )


def _is_heap_of_a_thread(mapping: _Mapping, after: _Mapping | None) -> bool:
    """Tell whether this is how glibc lays out a heap.

    It writes a header first, and what it has not opened yet follows. A start at the right place
    does not suffice: the kernel puts large buffers at multiples of a huge page, and one in 32 of
    those is the place of a heap.
    """
    if mapping.start % _HEAP_ALIGNMENT or mapping.written_bytes == 0:
        return False
    if mapping.end % _HEAP_ALIGNMENT == 0:
        return True
    return (
        after is not None
        and (after.start, after.rights) == (mapping.end, "---p")
        and after.end % _HEAP_ALIGNMENT == 0
    )


def _read_mappings() -> list[_Mapping]:
    mappings: list[_Mapping] = []
    for line in (_PROCESS / "smaps").read_text(encoding="utf-8").splitlines():
        if found := _MAPPING.match(line):
            start, end, rights, inode, name = found.groups()
            mappings.append(_Mapping(int(start, 16), int(end, 16), rights, int(inode), name))
        elif line.startswith(("Anonymous:", "Swap:")):
            mappings[-1].written_bytes += int(line.split()[1]) * 1024
    return mappings


def _writable_file_bytes() -> int:
    maps = (_PROCESS / "maps").read_bytes()
    return sum(int(end, 16) - int(start, 16) for start, end in _WRITABLE_FILE.findall(maps))


def _stack_bytes() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return _DEFAULT_STACK if soft == resource.RLIM_INFINITY else soft
