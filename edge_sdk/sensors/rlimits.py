"""What this process itself may still allocate: ``ulimit -v`` and ``ulimit -d``."""

from __future__ import annotations

from pathlib import Path

import psutil

from edge_sdk.sensors.cgroups import MemoryLimit
from edge_sdk.sensors.files import is_this_machine, keyed, lines, whole
from edge_sdk.sensors.reading import ask

_NAMES = {  # resource: (its line in proc/self/limits, what counts against it in proc/self/status)
    "RLIMIT_AS": ("Max address space", "VmSize"),
    "RLIMIT_DATA": ("Max data size", "VmData"),
}


def process_limits(root: Path) -> list[MemoryLimit]:
    """Return the limits on address space and data of this process, where they are set."""
    limits = _from_proc(root)
    if not limits and is_this_machine(root):
        limits = ask("resource", _from_resource).value or {}
    return [
        MemoryLimit(source=name, limit_bytes=limit, used_bytes=_used(root, name))
        for name, limit in limits.items()
        if limit >= 0
    ]


def _from_proc(root: Path) -> dict[str, int]:
    """Return the soft limits as Linux lists them; -1 is unlimited."""
    found = {}
    for line in lines(root / "proc/self/limits"):
        for name, (label, _) in _NAMES.items():
            if line.startswith(label):
                words = [*line[len(label) :].split(), "unlimited"]
                limit = whole(words[0])
                found[name] = -1 if limit is None else limit
    return found


def _from_resource() -> dict[str, int]:
    try:
        import resource
    except ImportError:  # Windows
        return {}
    found = {}
    for name in _NAMES:
        if hasattr(resource, name):
            limit = resource.getrlimit(getattr(resource, name))[0]
            found[name] = -1 if limit == resource.RLIM_INFINITY else limit
    return found


def _used(root: Path, name: str) -> int:
    """Return the bytes of this process that count against a limit."""
    words = keyed(root / "proc/self/status", ":").get(_NAMES[name][1], "").split()
    if words and (kib := whole(words[0])) is not None:
        return kib * 1024
    memory = ask("psutil", lambda: psutil.Process().memory_info()).value
    if memory is None:
        return 0
    return int(memory.vms if name == "RLIMIT_AS" else memory.rss)
