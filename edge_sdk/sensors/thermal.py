"""How hot the processor is, and whether the board slows itself down."""

from __future__ import annotations

import re
from pathlib import Path

from edge_sdk.sensors.commands import Run
from edge_sdk.sensors.files import children, number, text
from edge_sdk.sensors.reading import Reading

_PLAUSIBLE_C = (-30.0, 150.0)  # switched-off sensors read absolute zero, or less
# Reads 100 degrees until it passes 120: it reports thresholds, not a temperature.
_NO_THERMOMETER = ("PMIC-Die",)
# Chips that measure a processor. Those of mainboards have inputs that are wired to nothing.
_PROCESSOR_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "amdgpu")
_THROTTLE_BITS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
_SINCE_BOOT = 16  # the same four bits, kept from when they were last set


def read_temperature(root: Path) -> Reading[float]:
    """Return the hottest thermal zone or processor sensor in degrees Celsius, and which it is."""
    folder = root / "sys/class/thermal"
    files = [
        zone / "temp"
        for zone in children(folder, "thermal_zone")
        if text(zone / "type").value not in _NO_THERMOMETER
    ]
    for chip in children(root / "sys/class/hwmon"):
        if text(chip / "name").value in _PROCESSOR_CHIPS:
            files += [x for x in children(chip, "temp") if x.name.endswith("_input")]
    readings = {path: number(path).value for path in files}
    degrees = {path: value / 1000 for path, value in readings.items() if value is not None}
    low, high = _PLAUSIBLE_C
    degrees = {path: value for path, value in degrees.items() if low <= value <= high}
    if not degrees:
        return Reading(None, f"{folder}: no sensor")
    hottest = max(degrees, key=lambda path: degrees[path])
    return Reading(degrees[hottest], str(hottest))


def read_throttling(run: Run) -> tuple[Reading[tuple[str, ...]], Reading[tuple[str, ...]]]:
    """Return what slows a Raspberry Pi down now, and what did since it was started."""
    source = "vcgencmd get_throttled"
    printed = run(["vcgencmd", "get_throttled"])
    found = re.search(r"throttled=0x([0-9a-fA-F]{1,8})\b", printed or "")
    if not found:
        reason = f"{source}: {'no answer' if printed is None else 'not understood'}"
        return Reading(None, reason), Reading(None, reason)
    bits = int(found[1], 16)
    return Reading(_set(bits), source), Reading(_set(bits >> _SINCE_BOOT), source)


def _set(bits: int) -> tuple[str, ...]:
    return tuple(name for place, name in enumerate(_THROTTLE_BITS) if bits >> place & 1)
