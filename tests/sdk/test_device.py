"""The probe describes a whole machine, and nothing that is missing or broken stops it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.device import (
    DeviceReport,
    available_memory,
    fingerprint,
    has_native_bf16,
    peak_rss_bytes,
    probe,
)
from edge_sdk.sensors.reading import Reading
from tests.sdk.captured import JETSON_ORIN_NANO, LAPTOP, RASPBERRY_PI_5, answers, write

GIB = 1 << 30
KIB = 1 << 10
READ_FILES = sorted(
    {*RASPBERRY_PI_5, *JETSON_ORIN_NANO, *LAPTOP}
    | {
        "proc/self/cgroup",
        "proc/self/limits",
        "sys/fs/cgroup/memory.max",
        "sys/fs/cgroup/memory.high",
        "sys/fs/cgroup/memory.stat",
        "sys/fs/cgroup/memory.current",
        "sys/fs/cgroup/cpu.max",
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us",
    }
)


def readings(report: object, name: str = "") -> dict[str, Reading[object]]:
    """Return every reading of a report, by its place."""
    found = {}
    for field in dataclasses.fields(report):
        value, place = getattr(report, field.name), f"{name}{field.name}"
        if isinstance(value, Reading):
            found[place] = value
        elif dataclasses.is_dataclass(value):
            found |= readings(value, f"{place}.")
    return found


def test_this_machine_is_described_by_plain_values_and_its_readings_agree():
    report = probe()
    assert 0 < report.memory_available_bytes <= report.memory_total_bytes
    assert report.memory_total_bytes <= psutil.virtual_memory().total
    assert 1 <= report.cores <= report.cpu.logical_cores.value
    assert report.surroundings.disk_free_bytes.value > 0
    assert available_memory()[1] == report.memory_source
    assert has_native_bf16() is report.has_native_bf16


def test_every_reading_says_where_it_came_from_or_why_it_is_missing(tmp_path):
    for report in (probe(), probe(tmp_path)):
        found = readings(report)
        assert len(found) == 29
        assert all(isinstance(reading.source, str) and reading.source for reading in found.values())


def test_probing_imports_no_torch():
    script = "import sys; from edge_sdk.device import probe; probe(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("as_plain", [dataclasses.asdict, lambda report: report])
def test_a_report_survives_the_way_through_json(tmp_path, as_plain):
    for root in (Path("/"), write(tmp_path, JETSON_ORIN_NANO)):
        report = probe(root)
        encoded = msgspec.json.encode(as_plain(report))
        assert msgspec.json.decode(encoded, type=DeviceReport) == report


def test_a_captured_raspberry_pi_is_recognised(tmp_path):
    programs = answers({"vcgencmd": "throttled=0x50005\n"})
    report = probe(write(tmp_path, RASPBERRY_PI_5), run=programs)
    assert report.board.value == "Raspberry Pi 5 Model B Rev 1.0"
    assert report.cpu.model.value == "Cortex-A76"
    assert report.cpu.instruction_sets.value == ("asimddp", "asimdhp", "neon")
    assert not report.has_native_bf16
    assert report.cores == report.cpu.logical_cores.value == 4
    assert report.memory_total_bytes == 8245984 * KIB
    assert report.memory_available_bytes == 6 * GIB
    assert report.memory.swap.total_bytes.value == 524272 * KIB
    assert report.memory.swap.free_bytes.value == (524272 - 1024) * KIB
    assert report.memory.swap.zram_bytes.value == 0
    assert report.accelerator.kind.value is None
    assert report.surroundings.is_on_mains.value is True
    assert report.surroundings.temperature_celsius.value == 61.25
    assert report.surroundings.throttled_now.value == ("under-voltage", "throttled")
    assert report.surroundings.load_per_core.value == 0.5


def test_a_captured_jetson_is_recognised(tmp_path):
    report = probe(write(tmp_path, JETSON_ORIN_NANO))
    assert report.cpu.model.value == "Cortex-A78AE"
    assert report.cores == 6
    assert report.accelerator.name.value == "Jetson Orin Nano 8GB"
    assert report.accelerator.free_bytes.value == report.memory_available_bytes == 5 * GIB
    assert report.memory.swap.total_bytes.value == 0
    assert report.memory.swap.zram_bytes.value == 6 * 650240 * KIB
    assert report.surroundings.temperature_celsius.value == 48.5


def test_a_captured_laptop_on_battery_is_recognised(tmp_path):
    programs = answers({"busctl": "u 3\n", "nvidia-smi": None})
    report = probe(write(tmp_path, LAPTOP), run=programs)
    assert report.has_native_bf16
    assert (report.cores, report.cpu.logical_cores.value) == (8, 16)
    assert report.memory.pressure_percent.value == 1.5
    assert report.surroundings.battery_percent.value == 57
    assert report.surroundings.is_on_mains.value is False
    assert report.surroundings.is_metered.value is True
    assert report.surroundings.temperature_celsius.value == 71.125
    assert report.surroundings.load_per_core.value == 0.25


def test_a_captured_machine_is_never_mixed_with_this_one(tmp_path):
    """Nothing but memory and cores, which a plan cannot do without, may come from here."""
    borrowed = {
        "memory.total_bytes",
        "memory.available_bytes",
        "memory.host_total_bytes",
        "memory.host_available_bytes",
        "cpu.cores",
        "cpu.logical_cores",
    }
    found = readings(probe(tmp_path))
    assert {name for name, reading in found.items() if reading.value is not None} == borrowed


@given(
    st.dictionaries(
        st.sampled_from(READ_FILES),
        st.one_of(
            st.text(max_size=80),
            st.sampled_from(["0::/../../x", "0::/" + "a" * 5000, "4:memory:/a\0b", "9" * 5000]),
            st.sampled_from(["-1", "²", "1e400", "nan", "inf", "some avg10=nan", "99 0", "max 0"]),
            st.just("Max address space -1\nMax data size 0\n"),
            st.just("Filename\n/dev/zram0 partition 1\n/dev/../zram\0 x 1 2\n"),
        ),
    ),
    st.text(max_size=40),
)
@settings(max_examples=150, deadline=None)
def test_for_every_garbage_in_files_and_programs_the_probe_still_reports(files, printed):
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content, errors="replace")
        report = probe(root, run=lambda command: printed)
    assert report.memory_available_bytes >= 0
    assert report.cores >= 1
    assert msgspec.json.decode(msgspec.json.encode(report), type=DeviceReport) == report
    assert len(fingerprint(report)) == 16


def test_bytes_that_are_no_text_are_no_crash(tmp_path):
    root = write(tmp_path, LAPTOP)
    for name in LAPTOP:
        (root / name).write_bytes(b"\xff\xfe\x00\x80 \xc3")
    assert probe(root).memory_source == "host"


def test_folders_in_the_place_of_files_are_no_crash(tmp_path):
    for name in READ_FILES:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    report = probe(tmp_path)
    assert report.cpu.instruction_sets.value is None
    assert "not readable" in report.cpu.instruction_sets.source


@pytest.mark.parametrize(
    "failure", [OSError("EIO"), RuntimeError("no such sensor"), PermissionError(), ValueError()]
)
def test_a_library_that_fails_leaves_a_reason_and_not_a_crash(monkeypatch, failure):
    def fail(*args: object, **kwargs: object) -> None:
        raise failure

    names = ["virtual_memory", "swap_memory", "cpu_count", "sensors_battery", "disk_usage"]
    for name in names:
        monkeypatch.setattr(psutil, name, fail)
    monkeypatch.setattr("os.cpu_count", fail)
    monkeypatch.setattr("os.getloadavg", fail)
    monkeypatch.setattr("os.sched_getaffinity", fail, raising=False)
    monkeypatch.setattr("shutil.disk_usage", fail)
    report = probe()
    disk = report.surroundings.disk_free_bytes
    assert disk.value is None
    assert ("permission denied" in disk.source) is isinstance(failure, PermissionError)


def test_a_machine_that_tells_nothing_has_no_memory_and_one_core(monkeypatch, tmp_path):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr(psutil, "virtual_memory", fail)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    report = probe(tmp_path)
    assert (report.memory_total_bytes, report.memory_available_bytes, report.cores) == (0, 0, 1)
    assert report.memory_source == "psutil: gone" or "meminfo" in report.memory_source
    assert available_memory(tmp_path)[0] == 0


def test_the_fingerprint_ignores_momentary_values(tmp_path):
    first = probe(write(tmp_path, LAPTOP))
    later = {
        **LAPTOP,
        "proc/meminfo": "MemTotal: 16303104 kB\nMemAvailable: 1048576 kB\n",
        "proc/loadavg": "9.00 3.00 2.00 3/900 77\n",
        "sys/class/power_supply/BAT0/capacity": "12\n",
        "sys/class/hwmon/hwmon0/temp1_input": "91000\n",
    }
    second = probe(write(tmp_path, later))
    assert second != first
    assert fingerprint(second) == fingerprint(first)


@pytest.mark.parametrize(
    "change",
    [
        {"proc/cpuinfo": LAPTOP["proc/cpuinfo"].replace("7840U", "7640U")},
        {"proc/cpuinfo": LAPTOP["proc/cpuinfo"].replace("avx512_bf16", "")},
        {"proc/self/status": "Cpus_allowed_list:\t0-2\n"},
        {"sys/class/power_supply/AC/online": "1\n"},
        {"proc/device-tree/compatible": "nvidia,p3767-0001\0"},
        {"var/lib/nvpmodel/status": "pmode:0001\n"},
    ],
)
def test_the_fingerprint_changes_with_what_decides_speed(tmp_path, change):
    machine = {
        **LAPTOP,
        "proc/device-tree/compatible": "nvidia,p3767-0000\0",
        "var/lib/nvpmodel/status": "pmode:0000\n",
    }
    before = fingerprint(probe(write(tmp_path, machine)))
    assert fingerprint(probe(write(tmp_path, change))) != before


def test_the_fingerprint_changes_with_the_library_versions_and_not_with_their_order(tmp_path):
    report = probe(write(tmp_path, LAPTOP))
    versions = {"torch": "2.4.0", "bitsandbytes": "0.49.0"}
    assert fingerprint(report, versions) == fingerprint(report, dict(reversed(versions.items())))
    assert fingerprint(report, versions) != fingerprint(report, {**versions, "torch": "2.5.0"})
    assert fingerprint(report, {}) == fingerprint(report)


def test_peak_memory_remembers_what_was_freed():
    rss = psutil.Process().memory_info().rss
    block = bytearray(32 << 20)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    del block
    assert peak_rss_bytes() >= rss + (16 << 20)
