"""Measure this machine: what it is, what of it we may use, and how it is doing now."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_sdk.identity.identity import default_state_folder
from edge_sdk.sensors.accelerator import AcceleratorReport
from edge_sdk.sensors.apple import read_metal
from edge_sdk.sensors.commands import Run, run_command, run_nothing
from edge_sdk.sensors.cpu import CpuReport, read_cpu
from edge_sdk.sensors.files import is_this_machine, lines, text
from edge_sdk.sensors.jetson import read_jetson
from edge_sdk.sensors.memory import MemoryReport, read_available, read_memory
from edge_sdk.sensors.nvidia import read_nvidia
from edge_sdk.sensors.reading import Reading
from edge_sdk.sensors.surroundings import Surroundings, read_surroundings

_THIS_MACHINE = Path("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """What a device is, what this process may use of it, and how it is doing now.

    Every reading says where it came from, or why it is missing. The properties are the values
    a plan needs, as plain numbers.

    Attributes:
        system: Operating system and machine, for people.
        board: Name of a board that has one, such as a Raspberry Pi.
        memory: Memory and every limit on it.
        cpu: Processor, usable cores and instruction sets.
        accelerator: GPU, if there is one.
        surroundings: Power, heat, network, disk and load.
    """

    system: str
    board: Reading[str]
    memory: MemoryReport
    cpu: CpuReport
    accelerator: AcceleratorReport
    surroundings: Surroundings

    @property
    def memory_total_bytes(self) -> int:
        """Memory this process can ever have; 0 if the machine does not tell."""
        return self.memory.total_bytes.value or 0

    @property
    def memory_available_bytes(self) -> int:
        """Memory this process can have now without swapping; 0 if the machine does not tell."""
        return self.memory.available_bytes.value or 0

    @property
    def memory_source(self) -> str:
        """What limits the memory available: ``host``, a cgroup file or a resource limit."""
        return self.memory.available_bytes.source

    @property
    def cores(self) -> int:
        """Physical cores this process may use, after affinity and cgroup quota."""
        return self.cpu.cores.value or 1

    @property
    def has_native_bf16(self) -> bool:
        """The CPU multiplies bfloat16 in hardware; without it fp32 is faster."""
        return self.cpu.has_native_bf16


def probe(
    root: Path = _THIS_MACHINE, *, run: Run | None = None, state_folder: Path | None = None
) -> DeviceReport:
    """Measure this device without importing torch; nothing missing or broken is an error.

    Takes milliseconds, and longer only where a program such as ``nvidia-smi`` must be asked;
    each of those has 3 s to answer.

    Args:
        root: Where ``proc`` and ``sys`` are; another folder replays a captured machine. Of a
            capture without memory or cores, those of this machine are reported.
        run: Asks programs; by default those on PATH, and none for a captured machine.
        state_folder: Where free disk space is measured; by default this user's state folder.
    """
    is_live = is_this_machine(root)
    run = run or (run_command if is_live else run_nothing)
    if state_folder is None and is_live:
        state_folder = default_state_folder()
    system = platform.system() if is_live else "Linux"  # only Linux keeps its readings in files
    memory = read_memory(root)
    cpu = read_cpu(root, run, system)
    threads = cpu.logical_cores.value or 1
    return DeviceReport(
        system=_describe_system(),
        board=text(root / "proc/device-tree/model"),
        memory=memory,
        cpu=cpu,
        accelerator=(
            read_jetson(root, run, memory)
            or read_metal(system, platform.machine(), cpu, memory)
            or read_nvidia(run, memory, cpu)
        ),
        surroundings=read_surroundings(root, run, system, state_folder, threads),
    )


def _describe_system() -> str:
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"


def available_memory(root: Path = _THIS_MACHINE) -> tuple[int, str]:
    """Return the bytes this process can have now and what limits them; takes milliseconds."""
    available = read_available(root)
    return available.value or 0, available.source


def has_native_bf16(root: Path = _THIS_MACHINE) -> bool:
    """Say whether the CPU multiplies bfloat16 in hardware, as far as the system tells."""
    run = run_command if is_this_machine(root) else run_nothing
    return read_cpu(root, run, platform.system()).has_native_bf16


def fingerprint(report: DeviceReport, versions: Mapping[str, str] | None = None) -> str:
    """Name what decides a device's speed: measurements stay valid while the name is the same.

    Momentary values such as free memory, load and temperature have no part in it.

    Args:
        report: The device.
        versions: Versions of the libraries that compute, by name.
    """
    facts = {
        "cpu": report.cpu.model.value,
        "instruction_sets": report.cpu.instruction_sets.value,
        "cores": report.cores,
        "accelerator": report.accelerator.name.value,
        "power_mode": report.accelerator.power_mode.value,
        "is_on_mains": report.surroundings.is_on_mains.value,
        "versions": dict(versions or {}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process so far."""
    for line in lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS
