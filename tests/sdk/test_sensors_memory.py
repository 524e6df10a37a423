"""Memory is what this process may really use: under cgroups, resource limits, and without swap."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from edge_sdk.device import available_memory, probe
from tests.sdk.captured import write

GIB = 1 << 30
HOST = {"proc/meminfo": "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n"}
UNLIMITED_V1 = "9223372036854771712\n"


def test_host_without_cgroups_reports_the_host(tmp_path):
    report = probe(write(tmp_path, HOST))
    assert (report.memory_total_bytes, report.memory_available_bytes) == (16 * GIB, 8 * GIB)
    assert report.memory_source == "host"
    assert report.memory.host_available_bytes.source.endswith("proc/meminfo")


def test_a_capture_without_meminfo_borrows_this_machines_memory_and_says_so(tmp_path):
    report = probe(tmp_path)
    assert report.memory_total_bytes == psutil.virtual_memory().total
    assert report.memory.host_total_bytes.source == "psutil"


def test_cgroup_v2_limit_beats_the_host(tmp_path):
    files = {
        "proc/self/cgroup": "0::/app/worker\n",
        "sys/fs/cgroup/app/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/app/memory.current": f"{GIB // 2}\n",
        "sys/fs/cgroup/app/memory.stat": f"anon 1\ninactive_file {GIB // 4}\n",
        "sys/fs/cgroup/app/worker/memory.max": "max\n",
    }
    report = probe(write(tmp_path, HOST | files))
    assert report.memory_total_bytes == GIB
    assert report.memory_available_bytes == GIB - GIB // 4
    assert report.memory_source.endswith("app/memory.max")
    assert available_memory(tmp_path) == (GIB - GIB // 4, report.memory_source)


def test_cgroup_v1_limit_beats_the_host(tmp_path):
    files = {
        "proc/self/cgroup": "5:devices:/x\n4:memory:/box\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB // 2}\n",
        "sys/fs/cgroup/memory/box/memory.stat": f"total_inactive_file {GIB // 8}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
    }
    report = probe(write(tmp_path, HOST | files))
    assert report.memory_total_bytes == GIB
    assert report.memory_available_bytes == GIB - GIB // 2 + GIB // 8
    assert [limit.limit_bytes for limit in report.memory.limits] == [GIB]


def test_the_tightest_of_nested_ancestors_binds(tmp_path):
    """The outer group has more room by its limit, and less by what others use in it."""
    files = {
        "proc/self/cgroup": "0::/a/b/c\n",
        "sys/fs/cgroup/a/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/a/memory.current": f"{3.5 * GIB:.0f}\n",
        "sys/fs/cgroup/a/b/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/a/b/memory.current": f"{GIB // 2}\n",
    }
    report = probe(write(tmp_path, HOST | files))
    assert report.memory.total_bytes.value == 2 * GIB
    assert report.memory.total_bytes.source.endswith("a/b/memory.max")
    assert report.memory_available_bytes == GIB // 2
    assert report.memory_source.endswith("a/memory.max")


def test_memory_high_binds_below_memory_max(tmp_path):
    files = {
        "proc/self/cgroup": "0::/app\n",
        "sys/fs/cgroup/app/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/app/memory.high": f"{GIB}\n",
        "sys/fs/cgroup/app/memory.current": "0\n",
    }
    report = probe(write(tmp_path, HOST | files))
    assert report.memory_available_bytes == GIB
    assert report.memory_source.endswith("memory.high")


def test_a_limit_already_exceeded_leaves_nothing(tmp_path):
    files = {
        "proc/self/cgroup": "0::/app\n",
        "sys/fs/cgroup/app/memory.high": f"{GIB}\n",
        "sys/fs/cgroup/app/memory.current": f"{GIB + 5}\n",
    }
    assert probe(write(tmp_path, HOST | files)).memory_available_bytes == 0


def test_container_that_sees_the_hosts_path_still_finds_its_limit(tmp_path):
    """The path in /proc names the host's tree, while the mount shows only our own cgroup."""
    files = {
        "proc/self/cgroup": "0::/system.slice/docker-abc.scope\n",
        "sys/fs/cgroup/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/memory.current": "0\n",
    }
    assert probe(write(tmp_path, HOST | files)).memory_available_bytes == GIB


def test_a_path_that_leaves_the_mount_is_not_followed(tmp_path):
    files = {
        "proc/self/cgroup": "0::/../../elsewhere\n",
        "sys/elsewhere/memory.max": "5\n",
        "sys/fs/cgroup/memory.max": f"{GIB}\n",
    }
    assert probe(write(tmp_path, HOST | files)).memory_total_bytes == GIB


def test_a_v2_tree_mounted_beside_v1_is_found(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/\n0::/unit\n",
        "sys/fs/cgroup/unified/unit/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
    }
    assert probe(write(tmp_path, HOST | files)).memory_total_bytes == GIB


@pytest.mark.parametrize("content", ["max", UNLIMITED_V1, "-1", "lots", "", "9" * 40])
def test_what_is_no_limit_does_not_bind(tmp_path, content):
    files = {
        "proc/self/cgroup": "nonsense\n0::/\n4:memory:/\n::::\n",
        "sys/fs/cgroup/memory.max": content,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": content,
    }
    report = probe(write(tmp_path, HOST | files))
    assert report.memory_source == "host"
    assert report.memory.limits == ()


@pytest.mark.parametrize(
    ("name", "used", "label"),
    [("RLIMIT_AS", "VmSize", "Max address space"), ("RLIMIT_DATA", "VmData", "Max data size")],
)
def test_a_captured_resource_limit_binds_after_what_is_used(tmp_path, name, used, label):
    files = {
        "proc/self/limits": f"{label}     {GIB}     unlimited     bytes\nMax cpu time 1 1 s\n",
        "proc/self/status": f"{used}:\t 262144 kB\n",
    }
    report = probe(write(tmp_path, HOST | files))
    assert report.memory_total_bytes == GIB
    assert report.memory_available_bytes == GIB - GIB // 4
    assert report.memory_source == name


@pytest.mark.skipif(sys.platform != "linux", reason="Linux enforces these limits")
@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_what_a_real_resource_limit_leaves_can_be_allocated_and_no_more(name):
    """A child under a limit takes nine tenths of what the probe leaves it, then is refused."""
    script = f"""
import json, resource
from edge_sdk.device import available_memory, probe
resource.setrlimit(resource.{name}, (1 << 30, resource.RLIM_INFINITY))
report = probe()
left, source = available_memory()
held = bytearray(left * 9 // 10)
try:
    bytearray(left * 2 // 10)
    refused = False
except MemoryError:
    refused = True
print(json.dumps([source, report.memory_source, report.memory_total_bytes, left, refused]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    source, reported, total, left, refused = json.loads(done.stdout)
    assert source == reported == name
    assert total == 1 << 30
    assert 0 < left < 1 << 30
    assert refused


def test_swap_and_zram_are_told_apart_and_are_no_memory(tmp_path):
    files = {
        "proc/swaps": "Filename Type Size Used Priority\n"
        "/dev/nvme0n1p3 partition 4194304 1048576 -2\n"
        "/dev/zram0 partition 1024 0 100\n"
        "/dev/zram1 partition 2048 0 100\n",
        "sys/block/zram0/disksize": f"{2 * GIB}\n",
    }
    without = probe(write(tmp_path, HOST))
    report = probe(write(tmp_path, files))
    assert report.memory.swap.total_bytes.value == 4 * GIB
    assert report.memory.swap.free_bytes.value == 3 * GIB
    assert report.memory.swap.zram_bytes.value == 2 * GIB + 2048 * 1024
    assert report.memory_available_bytes == without.memory_available_bytes


def test_memory_pressure_is_the_share_of_some_in_ten_seconds(tmp_path):
    some = "some avg10=12.25 avg60=3.00 avg300=0.00 total=9\n"
    full = "full avg10=7.00 avg60=2.00 avg300=0.00 total=5\n"
    report = probe(write(tmp_path, {"proc/pressure/memory": full + some}))
    assert report.memory.pressure_percent.value == 12.25


def test_missing_memory_pressure_has_a_reason(tmp_path):
    reading = probe(tmp_path).memory.pressure_percent
    assert reading.value is None
    assert reading.source.endswith("not on this system")
