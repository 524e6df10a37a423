"""An NVIDIA card, as its driver's own program tells; not measured on hardware."""

from __future__ import annotations

import os
from collections.abc import Mapping

from edge_sdk.sensors.accelerator import AcceleratorReport, no_accelerator
from edge_sdk.sensors.commands import Run
from edge_sdk.sensors.cpu import CpuReport
from edge_sdk.sensors.files import whole
from edge_sdk.sensors.memory import MemoryReport
from edge_sdk.sensors.reading import Reading

_SOURCE = "nvidia-smi"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_FIELDS = ("name", "memory.total", "memory.free", "compute_cap", "driver_version")
_MIB = 1 << 20
_NO_MEMORY_OF_ITS_OWN = {"[N/A]", "[Not Supported]", "N/A"}


def read_nvidia(
    run: Run,
    memory: MemoryReport,
    cpu: CpuReport,
    environment: Mapping[str, str] = os.environ,
) -> AcceleratorReport:
    """Read the card CUDA would use first.

    Args:
        run: Runs ``nvidia-smi``.
        memory: Stands in for the memory of a GPU that shares it.
        cpu: GPUs that share the memory sit beside ARM cores.
        environment: Where ``CUDA_VISIBLE_DEVICES`` may choose or hide cards.
    """
    printed = run([_SOURCE, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"])
    if printed is None:
        return no_accelerator(f"{_SOURCE}: not installed, or no answer")
    rows = [[cell.strip() for cell in line.split(",")] for line in printed.splitlines()]
    cards = [row for row in rows if len(row) == len(_FIELDS) and row[0]]
    visible = environment.get(_VISIBLE)
    if visible is not None and visible.strip() in ("", "-1"):
        return no_accelerator(f"hidden by the environment variable {_VISIBLE}")
    index = whole((visible or "0").split(",")[0]) or 0
    if not 0 <= index < len(cards):
        return no_accelerator(f"{_SOURCE}: no card {index} in its answer")
    return _report(cards[index], memory, is_arm="neon" in (cpu.instruction_sets.value or ()))


def _report(card: list[str], memory: MemoryReport, is_arm: bool) -> AcceleratorReport:
    name, total, free, capability, driver = card
    is_shared = is_arm and {total, free} <= _NO_MEMORY_OF_ITS_OWN
    return AcceleratorReport(
        kind=Reading("cuda", _SOURCE),
        name=Reading(name, _SOURCE),
        total_bytes=memory.total_bytes if is_shared else _mebibytes(total),
        free_bytes=memory.available_bytes if is_shared else _mebibytes(free),
        is_memory_shared=Reading(is_shared, _SOURCE),
        compute_capability=_told(capability),
        driver_version=_told(driver),
        power_mode=Reading(None, "not a Jetson"),
    )


def _mebibytes(cell: str) -> Reading[int]:
    count = whole(cell)
    if count is None or count < 0:
        return Reading(None, f"{_SOURCE}: {cell or 'no value'}")
    return Reading(count * _MIB, _SOURCE)


def _told(cell: str) -> Reading[str]:
    is_told = bool(cell) and not cell.startswith("[")
    return Reading(cell if is_told else None, _SOURCE if is_told else f"{_SOURCE}: {cell}")
