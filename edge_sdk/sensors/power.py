"""Battery and mains."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import psutil

from edge_sdk.sensors.files import children, is_this_machine, number, text
from edge_sdk.sensors.reading import Reading, ask

_CHARGERS = ("Mains", "USB", "Wireless")  # the first word of the type: USB_C, USB_PD ...
_ON_MAINS = ("Charging", "Full", "Not charging")


def read_power(root: Path) -> tuple[Reading[float], Reading[bool]]:
    """Return the battery's charge in percent, and whether the machine runs on mains.

    A machine without a battery runs on mains. A battery that does not say what it does is no
    such machine: the second reading is missing then.
    """
    folder = root / "sys/class/power_supply"
    if not ask(str(folder), lambda: folder.is_dir() or None).value:
        return _without_sysfs(root, folder)
    supplies = [supply for supply in children(folder) if _powers_the_machine(supply)]
    batteries = [supply for supply in supplies if _is_battery(supply)]
    chargers = [x for x in supplies if _kind(x).split("_")[0] in _CHARGERS]
    return _charge(batteries, folder), _mains(batteries, chargers, folder)


def _kind(supply: Path) -> str:
    return text(supply / "type").value or ""


def _is_battery(supply: Path) -> bool:
    return _kind(supply) in ("Battery", "UPS") or supply.name.startswith("BAT")


def _powers_the_machine(supply: Path) -> bool:
    """Leave out the batteries of mice, keyboards and pens."""
    return text(supply / "scope").value != "Device"


def _charge(batteries: list[Path], folder: Path) -> Reading[float]:
    if not batteries:
        return Reading(None, f"{folder}: no battery")
    readings = [number(battery / "capacity") for battery in batteries]
    charges = [x.value for x in readings if x.value is not None and 0 <= x.value <= 100]
    if not charges:
        return Reading(None, f"{batteries[0] / 'capacity'}: no percentage")
    return Reading(fmean(charges), str(folder))


def _mains(batteries: list[Path], chargers: list[Path], folder: Path) -> Reading[bool]:
    for charger in chargers:
        if number(charger / "online").value == 1:
            return Reading(True, str(charger / "online"))
    if not batteries:
        return Reading(True, f"{folder}: no battery")
    states = {battery / "status": text(battery / "status").value for battery in batteries}
    for path, state in states.items():
        if state == "Discharging":
            return Reading(False, str(path))
    if all(state in _ON_MAINS for state in states.values()):
        return Reading(True, str(folder))
    if any(number(charger / "online").value == 0 for charger in chargers):
        return Reading(False, str(folder))
    return Reading(None, f"{next(iter(states))}: does not say")


def _without_sysfs(root: Path, folder: Path) -> tuple[Reading[float], Reading[bool]]:
    """Ask psutil, which knows macOS and Windows."""
    if not is_this_machine(root):
        reason = f"{folder}: not on this system"
        return Reading(None, reason), Reading(None, reason)
    asked = ask("psutil", lambda: [psutil.sensors_battery()])
    if asked.value is None:
        return Reading(None, asked.source), Reading(None, asked.source)
    battery = asked.value[0]
    if battery is None:
        return Reading(None, "psutil: no battery"), Reading(True, "psutil: no battery")
    plugged = battery.power_plugged
    return (
        Reading(float(battery.percent), "psutil"),
        Reading(plugged, "psutil" if plugged is not None else "psutil: does not say"),
    )
