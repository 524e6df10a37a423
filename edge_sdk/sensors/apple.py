"""The GPU of an Apple chip; not measured on hardware."""

from __future__ import annotations

from edge_sdk.sensors.accelerator import AcceleratorReport
from edge_sdk.sensors.cpu import CpuReport
from edge_sdk.sensors.memory import MemoryReport
from edge_sdk.sensors.reading import Reading


def read_metal(
    system: str, machine: str, cpu: CpuReport, memory: MemoryReport
) -> AcceleratorReport | None:
    """Return the GPU that every Apple chip has; None on any other machine.

    It shares the memory of the machine. How much of it Metal lets one process use is less, and
    only Metal itself tells.
    """
    if system != "Darwin" or machine != "arm64":
        return None
    source = "Darwin on arm64"
    return AcceleratorReport(
        kind=Reading("metal", source),
        name=cpu.model,
        total_bytes=memory.total_bytes,
        free_bytes=memory.available_bytes,
        is_memory_shared=Reading(True, source),
        compute_capability=Reading(None, "not a CUDA device"),
        driver_version=Reading(None, "part of macOS"),
        power_mode=Reading(None, "not a Jetson"),
    )
