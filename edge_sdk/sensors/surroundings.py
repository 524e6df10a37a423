"""Where the device finds itself now: power, heat, network, disk and other work."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.sensors.commands import Run
from edge_sdk.sensors.files import fraction, is_this_machine, text
from edge_sdk.sensors.network import read_metered
from edge_sdk.sensors.power import read_power
from edge_sdk.sensors.reading import Reading, ask
from edge_sdk.sensors.thermal import read_temperature, read_throttling


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What decides whether now is a good time to train.

    Attributes:
        disk_free_bytes: Free for this user in the file system of the state folder.
        battery_percent: Charge; missing without a battery.
        is_on_mains: True also where there is no battery.
        temperature_celsius: The hottest sensor of the processor.
        throttled_now: What slows a Raspberry Pi down, empty if nothing does.
        throttled_since_boot: What slowed it down since it was started.
        is_metered: Traffic costs money, or probably does.
        load_per_core: Tasks that ran or waited in the last minute, per hardware thread.
    """

    disk_free_bytes: Reading[int]
    battery_percent: Reading[float]
    is_on_mains: Reading[bool]
    temperature_celsius: Reading[float]
    throttled_now: Reading[tuple[str, ...]]
    throttled_since_boot: Reading[tuple[str, ...]]
    is_metered: Reading[bool]
    load_per_core: Reading[float]


def read_surroundings(
    root: Path, run: Run, system: str, state_folder: Path | None, logical_cores: int
) -> Surroundings:
    """Read everything that changes while the device stays the same."""
    battery, mains = read_power(root)
    now, since_boot = read_throttling(run)
    return Surroundings(
        disk_free_bytes=_disk_free(state_folder),
        battery_percent=battery,
        is_on_mains=mains,
        temperature_celsius=read_temperature(root),
        throttled_now=now,
        throttled_since_boot=since_boot,
        is_metered=read_metered(run, system),
        load_per_core=_load(root, logical_cores),
    )


def _disk_free(folder: Path | None) -> Reading[int]:
    """Measure at the nearest folder that exists: the state folder may not be made yet."""
    if folder is None:
        return Reading(None, "no state folder was named")

    def measure() -> int:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(there).free

    return ask(str(folder), measure)


def _load(root: Path, logical_cores: int) -> Reading[float]:
    path = root / "proc/loadavg"
    content = text(path)
    if content.value is not None:
        load, source = fraction((content.value.split() or [""])[0]), str(path)
    elif is_this_machine(root) and hasattr(os, "getloadavg"):
        load, source = ask("os.getloadavg", lambda: os.getloadavg()[0]).value, "os.getloadavg"
    else:
        return Reading(None, content.source)
    if load is None or load < 0:
        return Reading(None, f"{source}: no load average")
    return Reading(load / max(1, logical_cores), source)
