"""Measure this machine: memory and cores we may really use, and what the CPU can compute."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes a number near 2**63 for "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """What a device is and what is free on it now.

    Attributes:
        system: Operating system and machine, for people.
        memory_total_bytes: Memory this process can ever have.
        memory_available_bytes: Memory it can have now without swapping.
        memory_source: Where the smaller limit came from: the host or a cgroup file.
        cores: Physical cores this process may use, after affinity and cgroup quota.
        has_native_bf16: The CPU multiplies bfloat16 in hardware; without it fp32 is faster.
    """

    system: str
    memory_total_bytes: int
    memory_available_bytes: int
    memory_source: str
    cores: int
    has_native_bf16: bool


def probe(root: Path = Path("/")) -> DeviceReport:
    """Measure this device; takes milliseconds and never imports torch.

    Args:
        root: Where ``proc`` and ``sys`` are; another folder replays a captured machine.
    """
    memory = psutil.virtual_memory()
    total, available, source = int(memory.total), int(memory.available), "host"
    for limit, used, path in _cgroup_memory(root):
        total = min(total, limit)
        if limit - used < available:
            available, source = max(0, limit - used), str(path)
    return DeviceReport(
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        memory_total_bytes=total,
        memory_available_bytes=available,
        memory_source=source,
        cores=_cores(root),
        has_native_bf16=has_native_bf16(root),
    )


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process so far."""
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS


def _cgroup_memory(root: Path) -> list[tuple[int, int, Path]]:
    """Return (limit, used without reclaimable cache, file) of every limiting ancestor cgroup."""
    found = []
    for folder in _cgroup_folders(root, "memory"):
        for limit_name, used_name, cache_key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(folder / limit_name)
            if limit is None or limit >= _UNLIMITED_BYTES:
                continue
            cache = _keyed(folder / "memory.stat").get(cache_key, 0)
            used = max(0, (_number(folder / used_name) or 0) - cache)
            found.append((limit, used, folder / limit_name))
    return found


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """Return our cgroup and its ancestors, v2 and v1, as folders of the cgroup file system."""
    mount = root / "sys/fs/cgroup"
    folders = []
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            base = mount
        elif controller in controllers.split(","):
            base = mount / controller
        else:
            continue
        here = base / path.lstrip("/")
        folders += [here, *(x for x in here.parents if x == base or base in x.parents)]
        folders.append(base)  # inside a container the path may be the host's, the root ours
    return list(dict.fromkeys(folders))


def _cores(root: Path) -> int:
    logical = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    physical = psutil.cpu_count(logical=False) or logical
    quotas = [x for folder in _cgroup_folders(root, "cpu") if (x := _cpu_quota(folder))]
    return max(1, int(min([allowed, physical, *quotas])))


def _cpu_quota(folder: Path) -> float | None:
    """Return the cores a cgroup may use, v2 (``cpu.max``) or v1 (``cpu.cfs_*``), if limited."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def has_native_bf16(root: Path = Path("/")) -> bool:
    """Say whether the CPU multiplies bfloat16 in hardware, as far as Linux tells."""
    for line in _lines(root / "proc/cpuinfo"):
        if line.startswith("flags"):
            return bool({"avx512_bf16", "amx_bf16"} & set(line.split()))
    return False


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    words = " ".join(_lines(path)).split()
    return int(words[0]) if words and words[0].lstrip("-").isdigit() else None


def _keyed(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(path))
    return {p[0]: int(p[1]) for p in pairs if len(p) == 2 and p[1].isdigit()}
