"""What the control groups we live in allow: memory and cores, cgroup v1 and v2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edge_sdk.sensors.files import keyed, lines, number, text, whole
from edge_sdk.sensors.reading import Reading

_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes a number near 2**63 for "no limit"
_V2 = ("memory.current", "inactive_file")
_V1 = ("memory.usage_in_bytes", "total_inactive_file")
_LIMITS = {"memory.max": _V2, "memory.high": _V2, "memory.limit_in_bytes": _V1}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """A bound on this process's memory below that of the machine.

    Attributes:
        source: The cgroup file or the resource limit.
        limit_bytes: What all who share the limit may have together.
        used_bytes: What they have now, without cache the kernel would give back.
    """

    source: str
    limit_bytes: int
    used_bytes: int

    @property
    def available_bytes(self) -> int:
        """Bytes left below the limit."""
        return max(0, self.limit_bytes - self.used_bytes)


def cgroup_limits(root: Path) -> list[MemoryLimit]:
    """Return the memory limit of our cgroup and of every ancestor that has one.

    ``memory.high`` counts as a limit: above it the kernel slows the process down to a crawl.
    """
    found = []
    for folder in _folders(root, "memory"):
        for name, (used_name, cache_key) in _LIMITS.items():
            limit = number(folder / name).value
            if limit is None or not 0 <= limit < _UNLIMITED_BYTES:
                continue
            cache = whole(keyed(folder / "memory.stat").get(cache_key, "")) or 0
            used = max(0, (number(folder / used_name).value or 0) - cache)
            found.append(MemoryLimit(source=str(folder / name), limit_bytes=limit, used_bytes=used))
    return found


def cpu_quotas(root: Path) -> list[Reading[float]]:
    """Return how many cores each limiting cgroup may use, v2 (``cpu.max``) or v1 (``cfs_*``)."""
    found: list[Reading[float]] = []
    for folder in _folders(root, "cpu"):
        words = (text(folder / "cpu.max").value or "").split()
        v2 = [whole(word) for word in words[:2]]
        v1 = [number(folder / f"cpu.cfs_{name}_us").value for name in ("quota", "period")]
        for name, pair in (("cpu.max", v2), ("cpu.cfs_quota_us", v1)):
            quota, period = [*pair, None, None][:2]
            if quota and period and quota > 0 and period > 0:
                found.append(Reading(quota / period, str(folder / name)))
    return found


def _folders(root: Path, controller: str) -> list[Path]:
    """Return our cgroup and its ancestors, v2 and v1, as folders of the cgroup file system."""
    mount = root / "sys/fs/cgroup"
    folders: list[Path] = []
    for line in lines(root / "proc/self/cgroup"):
        number_, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number_ == "0" and not controllers:
            bases = [mount, mount / "unified"]  # the second where v1 and v2 are both mounted
        elif controller in controllers.split(","):
            bases = [mount / controller]
        else:
            continue
        for base in bases:
            folders += _upward(base, PurePosixPath(path.lstrip("/")))
    return list(dict.fromkeys(folders))


def _upward(base: Path, path: PurePosixPath) -> list[Path]:
    """Return the folder of a cgroup, its ancestors, and the mount itself.

    The mount is always among them: inside a container the path may be the host's while the
    mount shows our own cgroup. A path that leaves the mount (``..``) names nothing we can see.
    """
    if ".." in path.parts:
        return [base]
    return [base / path, *(base / parent for parent in path.parents), base]
