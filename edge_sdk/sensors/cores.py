"""How many cores this process may really use."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from edge_sdk.sensors.cgroups import cpu_quotas
from edge_sdk.sensors.files import is_this_machine, keyed, lines, whole
from edge_sdk.sensors.reading import Reading, ask, first_known


def read_cores(root: Path) -> Reading[int]:
    """Return the fewest of physical cores, affinity and cgroup quota; the source names which."""
    bounds: dict[str, float] = {}
    for bound in (_physical(root), _allowed(root), *cpu_quotas(root)):
        if bound.value is not None:
            bounds.setdefault(bound.source, bound.value)
    if not bounds:
        return read_logical_cores(root)
    source = min(bounds, key=lambda name: bounds[name])
    return Reading(max(1, int(bounds[source])), source)


def read_logical_cores(root: Path) -> Reading[int]:
    """Return the hardware threads of the machine; a captured one without them borrows ours."""
    path = root / "proc/cpuinfo"
    listed = sum(1 for line in lines(path) if line.partition(":")[0].strip() == "processor")
    captured: Reading[int] = Reading(listed or None, str(path))
    live = ask("os.cpu_count", os.cpu_count)
    return first_known(live, captured) if is_this_machine(root) else first_known(captured, live)


def _physical(root: Path) -> Reading[int]:
    if is_this_machine(root):
        return ask("physical cores", lambda: psutil.cpu_count(logical=False))
    path = root / "proc/cpuinfo"
    cores, package = set(), ""
    for line in lines(path):
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "physical id":
            package = value
        elif key == "core id":
            cores.add((package, value))
    return Reading(len(cores) or None, "physical cores")


def _allowed(root: Path) -> Reading[int]:
    if is_this_machine(root):
        if not hasattr(os, "sched_getaffinity"):
            return Reading(None, "affinity: not on this system")
        return ask("affinity", lambda: len(os.sched_getaffinity(0)))
    listed = keyed(root / "proc/self/status", ":").get("Cpus_allowed_list", "")
    return Reading(_count(listed) or None, "affinity")


def _count(ranges: str) -> int:
    """Return how many CPUs a list such as ``0-3,7`` names; 0 if it is not such a list."""
    total = 0
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        low, high = whole(first), whole(last or first)
        if low is None or high is None or high < low:
            return 0
        total += high - low + 1
    return total
