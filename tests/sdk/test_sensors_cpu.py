"""Cores and instruction sets are those this process can use, on x86, ARM, macOS and Windows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edge_sdk.device import has_native_bf16, probe
from edge_sdk.sensors.commands import run_nothing
from edge_sdk.sensors.cpu import read_cpu
from tests.sdk.captured import LAPTOP, answers, write

SYSCTL_M2 = """machdep.cpu.cores_per_package: 8
machdep.cpu.brand_string: Apple M2
hw.optional.neon: 1
hw.optional.AdvSIMD: 1
hw.optional.neon_fp16: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
"""
QUOTA_V1 = {
    "proc/self/cgroup": "2:cpu,cpuacct:/box\n",
    "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "300000\n",
    "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
}


@pytest.mark.parametrize(
    ("line", "sets", "native"),
    [
        ("flags : fpu avx2 fma sse2", ("avx2", "fma"), False),
        ("flags : avx512f avx512_vnni", ("avx512_vnni", "avx512f"), False),
        ("flags : avx512_bf16", ("avx512_bf16",), True),
        ("flags : amx_bf16 amx_tile amx_int8", ("amx_bf16", "amx_int8"), True),
        ("flags : avx_vnni", ("avx_vnni",), False),
        ("Features : fp asimd asimdhp asimddp", ("asimddp", "asimdhp", "neon"), False),
        ("Features : asimd sve i8mm bf16", ("bf16", "i8mm", "neon", "sve"), True),
        ("Features : half thumb neon vfpv4", ("neon",), False),
        ("Features : fp svei8mm svebf16", (), False),
    ],
)
def test_instruction_sets_have_stable_names(tmp_path, line, sets, native):
    root = write(tmp_path, {"proc/cpuinfo": f"processor : 0\n{line}\n"})
    report = probe(root)
    assert report.cpu.instruction_sets.value == sets
    assert report.has_native_bf16 is has_native_bf16(root) is native


def test_a_processor_of_two_kinds_of_cores_is_named_by_both(tmp_path):
    cores = [("0x41", "0xd05")] * 4 + [("0x41", "0xd0b")] * 2 + [("0x51", "0x001")]
    content = "".join(
        f"processor : {i}\nCPU implementer : {maker}\nCPU part : {part}\n\n"
        for i, (maker, part) in enumerate(cores)
    )
    report = probe(write(tmp_path, {"proc/cpuinfo": content}))
    assert report.cpu.model.value == "Cortex-A55 + Cortex-A76 + ARM implementer 0x51 part 0x001"


def test_a_cpu_that_lists_nothing_has_reasons(tmp_path):
    cpu = probe(write(tmp_path, {"proc/cpuinfo": "processor : 0\n"})).cpu
    assert cpu.model.value is None
    assert cpu.model.source.endswith("no model")
    assert cpu.instruction_sets.value is None
    assert cpu.instruction_sets.source.endswith("no flags")


def test_macos_is_asked_through_sysctl(tmp_path):
    cpu = read_cpu(tmp_path, answers({"sysctl": SYSCTL_M2}), "Darwin")
    assert cpu.model.value == "Apple M2"
    assert cpu.instruction_sets.value == ("asimddp", "asimdhp", "bf16", "i8mm", "neon")
    assert cpu.has_native_bf16


@pytest.mark.parametrize("printed", [None, "", "garbage\n: :\nhw.optional.fma"])
def test_a_silent_sysctl_leaves_a_reason(tmp_path, printed):
    cpu = read_cpu(tmp_path, answers({"sysctl": printed}), "Darwin")
    assert cpu.model.value is None
    assert "sysctl" in cpu.model.source
    assert not cpu.has_native_bf16


def test_windows_names_its_cpu_and_says_why_instruction_sets_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", "Intel64 Family 6 Model 186")
    cpu = read_cpu(tmp_path, run_nothing, "Windows")
    assert cpu.model.value == "Intel64 Family 6 Model 186"
    assert cpu.model.source == "environment variable PROCESSOR_IDENTIFIER"
    assert cpu.instruction_sets.value is None
    assert "Windows" in cpu.instruction_sets.source


@pytest.mark.parametrize(
    ("files", "cores", "source"),
    [
        ({}, 8, "physical cores"),
        ({"proc/self/status": "Cpus_allowed_list:\t0-1,4\n"}, 3, "affinity"),
        ({"proc/self/status": "Cpus_allowed_list:\t5-1,x\n"}, 8, "physical cores"),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2, "cpu.max"),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1, "cpu.max"),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8, "physical"),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1 0\n"}, 8, "physical"),
        (QUOTA_V1, 3, "cpu.cfs_quota_us"),
        (
            QUOTA_V1 | {"sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1\n"},
            8,
            "physical",
        ),
    ],
)
def test_the_fewest_of_physical_cores_affinity_and_quota_may_be_used(
    tmp_path, files, cores, source
):
    report = probe(write(tmp_path, LAPTOP | files))
    assert report.cores == report.cpu.cores.value == cores
    assert source in report.cpu.cores.source


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_real_affinity_limits_the_cores():
    one = min(os.sched_getaffinity(0))
    script = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); "
        "from edge_sdk.device import probe; print(probe().cores)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
