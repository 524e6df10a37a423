"""How much memory this process can have: the machine's, and every limit below that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_sdk.sensors.cgroups import MemoryLimit, cgroup_limits
from edge_sdk.sensors.files import fraction, is_this_machine, keyed, text, whole
from edge_sdk.sensors.reading import Reading, ask, first_known
from edge_sdk.sensors.rlimits import process_limits
from edge_sdk.sensors.swap import SwapReport, read_swap


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Memory of the machine, of this process, and what lies between them.

    Attributes:
        total_bytes: What this process can ever have; the source names the limit that binds.
        available_bytes: What it can have now without swapping; the source names the limit that
            binds: ``host``, a cgroup file, ``RLIMIT_AS`` or ``RLIMIT_DATA``.
        host_total_bytes: Memory of the machine.
        host_available_bytes: What the machine could give now without swapping.
        limits: Every limit on this process that is set.
        swap: Swap space, in none of the figures above.
        pressure_percent: Share of the last 10 s in which some task waited for memory.
    """

    total_bytes: Reading[int]
    available_bytes: Reading[int]
    host_total_bytes: Reading[int]
    host_available_bytes: Reading[int]
    limits: tuple[MemoryLimit, ...]
    swap: SwapReport
    pressure_percent: Reading[float]


def read_memory(root: Path) -> MemoryReport:
    """Read everything about memory, in milliseconds."""
    host_total, host_available = _host(root)
    limits = _limits(root)
    return MemoryReport(
        total_bytes=_smallest(host_total, {x.source: x.limit_bytes for x in limits}),
        available_bytes=_smallest(host_available, {x.source: x.available_bytes for x in limits}),
        host_total_bytes=host_total,
        host_available_bytes=host_available,
        limits=tuple(limits),
        swap=read_swap(root),
        pressure_percent=_pressure(root),
    )


def read_available(root: Path) -> Reading[int]:
    """Read only what this process can have now: cheap enough between training steps."""
    limits = {limit.source: limit.available_bytes for limit in _limits(root)}
    return _smallest(_host(root)[1], limits)


def _limits(root: Path) -> list[MemoryLimit]:
    return [*cgroup_limits(root), *process_limits(root)]


def _smallest(host: Reading[int], limits: dict[str, int]) -> Reading[int]:
    """Return the machine's figure or the smallest below it, under the name of what binds."""
    if host.value is not None:
        limits = {"host": host.value, **limits}
    if not limits:
        return host
    source = min(limits, key=lambda name: limits[name])
    return Reading(limits[source], source)


def _host(root: Path) -> tuple[Reading[int], Reading[int]]:
    """Return total and available memory; a captured machine without them borrows this one's."""
    captured = _from_meminfo(root)
    live = (
        ask("psutil", lambda: int(psutil.virtual_memory().total)),
        ask("psutil", lambda: int(psutil.virtual_memory().available)),
    )
    first, second = (live, captured) if is_this_machine(root) else (captured, live)
    return first_known(first[0], second[0]), first_known(first[1], second[1])


def _from_meminfo(root: Path) -> tuple[Reading[int], Reading[int]]:
    path = root / "proc/meminfo"
    values = keyed(path, ":")

    def read(key: str) -> Reading[int]:
        kib = whole((values.get(key, "").split() or [""])[0])
        if kib is None or not 0 <= kib < 1 << 53:
            return Reading(None, f"{path}: no {key}")
        return Reading(kib * 1024, str(path))

    return read("MemTotal"), read("MemAvailable")


def _pressure(root: Path) -> Reading[float]:
    path = root / "proc/pressure/memory"
    content = text(path)
    if content.value is None:
        return Reading(None, content.source)
    for line in content.value.splitlines():
        kind, *pairs = [*line.split(), ""]
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        share = fraction(values.get("avg10", ""))
        if kind == "some" and share is not None:
            return Reading(share, str(path))
    return Reading(None, f"{path}: no 10 s average")
