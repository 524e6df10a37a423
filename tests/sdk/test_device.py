"""The probe reports what this process may really use, also inside a cgroup."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from edge_sdk.device import peak_rss_bytes, probe

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_host_without_cgroups_reports_the_host(tmp_path):
    report = probe(tmp_path)
    assert report.memory_total_bytes == psutil.virtual_memory().total
    assert report.memory_source == "host"
    assert report.cores >= 1


def test_cgroup_v2_limit_beats_the_host(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/app/worker\n",
            "sys/fs/cgroup/app/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/app/memory.current": f"{GIB // 2}\n",
            "sys/fs/cgroup/app/memory.stat": f"anon 1\ninactive_file {GIB // 4}\n",
            "sys/fs/cgroup/app/worker/memory.max": "max\n",
        },
    )
    report = probe(root)
    assert report.memory_total_bytes == GIB
    assert report.memory_available_bytes == GIB - GIB // 4
    assert report.memory_source.endswith("app/memory.max")


def test_cgroup_v1_limit_beats_the_host(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:devices:/x\n4:memory:/box\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB // 8}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    report = probe(root)
    assert report.memory_total_bytes == GIB
    assert report.memory_available_bytes == GIB - GIB // 8


def test_container_that_sees_the_hosts_path_still_finds_its_limit(tmp_path):
    """The path in /proc names the host's tree, while the mount shows only our own cgroup."""
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/docker-abc.scope\n",
            "sys/fs/cgroup/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/memory.current": "0\n",
        },
    )
    assert probe(root).memory_available_bytes == GIB


def test_cpu_quota_limits_the_cores(tmp_path):
    root = write(
        tmp_path,
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"},
    )
    assert probe(root).cores == 1


@pytest.mark.parametrize(
    ("flags", "native"),
    [("flags : avx2 avx512f", False), ("flags : avx512_bf16", True), ("flags : amx_bf16", True)],
)
def test_native_bf16_is_read_from_the_cpu_flags(tmp_path, flags, native):
    assert probe(write(tmp_path, {"proc/cpuinfo": flags + "\n"})).has_native_bf16 is native


def test_garbage_in_the_system_files_is_no_crash(tmp_path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "nonsense\n0::\n::::\n",
            "sys/fs/cgroup/memory.max": "lots\n",
            "sys/fs/cgroup/cpu.max": "x\n",
        },
    )
    assert probe(root).memory_source == "host"


def test_peak_memory_remembers_what_was_freed():
    rss = psutil.Process().memory_info().rss
    block = bytearray(32 << 20)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    del block
    assert peak_rss_bytes() >= rss + (16 << 20)
