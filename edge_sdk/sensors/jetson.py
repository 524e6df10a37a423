"""An NVIDIA Jetson: which module, in which power mode; not measured on hardware.

CPU and GPU share the memory, and the GPU's own count of what is free leaves out everything the
kernel would give back, so the memory available on the host is what is reported. The GPU has the
same name on every module of a family; only the device tree tells them apart.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

from edge_sdk.sensors.accelerator import AcceleratorReport
from edge_sdk.sensors.commands import Run
from edge_sdk.sensors.files import is_this_machine, text
from edge_sdk.sensors.memory import MemoryReport
from edge_sdk.sensors.reading import Reading

_MODULES = {
    "p3701": "Jetson AGX Orin",
    "p3767-0000": "Jetson Orin NX 16GB",
    "p3767-0001": "Jetson Orin NX 8GB",
    "p3767-0003": "Jetson Orin Nano 8GB",
    "p3767-0004": "Jetson Orin Nano 4GB",
    "p3767-0005": "Jetson Orin Nano 8GB",
    "tegra210": "Jetson Nano or TX1",
    "tegra186": "Jetson TX2",
    "tegra194": "Jetson Xavier",
    "tegra234": "Jetson Orin",
    "tegra264": "Jetson Thor",
}
_CAPABILITIES = {
    "tegra210": "5.3",
    "tegra186": "6.2",
    "tegra194": "7.2",
    "tegra234": "8.7",
    "tegra264": "11.0",
}


def read_jetson(root: Path, run: Run, memory: MemoryReport) -> AcceleratorReport | None:
    """Return the GPU of a Jetson; None if this machine is none."""
    path = root / "proc/device-tree/compatible"
    compatible = text(path).value or ""
    kernel = _kernel(root)
    name = _lookup(_MODULES, compatible, str(path))
    if name.value is None and kernel.value is not None and kernel.value.endswith("-tegra"):
        name = Reading("Jetson", kernel.source)
    if name.value is None:
        return None
    return AcceleratorReport(
        kind=Reading("cuda", name.source),
        name=name,
        total_bytes=memory.total_bytes,
        free_bytes=memory.available_bytes,
        is_memory_shared=Reading(True, name.source),
        compute_capability=_lookup(_CAPABILITIES, compatible, str(path)),
        driver_version=Reading(None, "part of the Jetson's system release"),
        power_mode=_power_mode(root, run),
    )


def _lookup(table: dict[str, str], compatible: str, source: str) -> Reading[str]:
    """Return the table's entry for the first of its keys in ``nvidia,...`` names."""
    names = " ".join(word for word in compatible.split() if word.startswith("nvidia,"))
    found = next((value for key, value in table.items() if key in names), None)
    return Reading(found, source if found else f"{source}: no known module")


def _kernel(root: Path) -> Reading[str]:
    if is_this_machine(root):
        return Reading(platform.release(), "kernel release")
    return text(root / "proc/sys/kernel/osrelease")


def _power_mode(root: Path, run: Run) -> Reading[str]:
    """Return the mode's name from ``nvpmodel``, or its number from the file nvpmodel keeps."""
    printed = run(["nvpmodel", "-q"]) or ""
    if named := re.search(r"NV Power Mode: *(\S.*)", printed):
        return Reading(named[1].strip(), "nvpmodel -q")
    path = root / "var/lib/nvpmodel/status"
    kept = text(path)
    if numbered := re.search(r"pmode:\d+", kept.value or ""):
        return Reading(numbered[0], kept.source)
    return Reading(None, kept.source if kept.value is None else f"{path}: no power mode")
