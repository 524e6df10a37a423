"""What the rules of a policy look at, read cheaply enough for several times a second."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from datetime import time as time_of_day
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

from edge_sdk.memory.memory_guard import free_memory
from edge_sdk.sensors.commands import run_command
from edge_sdk.sensors.network import read_metered
from edge_sdk.sensors.power import read_power
from edge_sdk.sensors.thermal import read_temperature

_SLOW_S = {"metered": 10.0, "disk": 10.0, "power": 0.5, "temperature": 0.5, "input": 2.0}
_BY_PROGRAM = ("metered", "input")
_CPU_WINDOW_S = 0.5
_IDLE_HINT = ["loginctl", "list-sessions", "--no-legend", "--no-pager"]

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensed:
    """One look at a device; None where it does not tell.

    Attributes:
        local_time: On the owner's clock.
        battery_percent: Charge of the battery.
        is_on_mains: Whether it gets power from outside.
        is_metered: Whether the network costs money.
        other_cpu_percent: Of all cores, used by processes that are not this SDK's.
        input_idle_s: Since a key or the mouse was last used.
        temperature_c: Of the hottest sensor.
        free_memory_bytes: Available to new programs, within the limits on this process.
        free_disk_bytes: On the disk of the state folder.
    """

    local_time: time_of_day
    battery_percent: float | None = None
    is_on_mains: bool | None = None
    is_metered: bool | None = None
    other_cpu_percent: float | None = None
    input_idle_s: float | None = None
    temperature_c: float | None = None
    free_memory_bytes: int | None = None
    free_disk_bytes: int | None = None


class Senses(Protocol):
    """Where a look comes from: this device, or a script in a test."""

    def read(self) -> Sensed:
        """Return what the device feels now."""


class ThisDevice:
    """The real sensors; the slow ones are read now and then.

    Args:
        state_folder: Whose disk counts.
        own_cpu_s: Returns the processor seconds this SDK's own processes have used so far.
        asks_for_input: Whether to find out when a key or the mouse was last used.
    """

    def __init__(
        self, state_folder: Path, own_cpu_s: Callable[[], float], *, asks_for_input: bool = False
    ) -> None:
        self._state = state_folder
        self._asks_for_input = asks_for_input
        self._own_cpu_s = own_cpu_s
        self._kept: dict[str, tuple[float, object]] = {}
        self._cpu: list[tuple[float, float, float]] = []

    def read(self) -> Sensed:
        """Return what the device feels now."""
        battery, mains = self._now_and_then("power", lambda: read_power(Path("/")))
        return Sensed(
            local_time=datetime.now().time(),
            battery_percent=battery.value,
            is_on_mains=mains.value,
            is_metered=self._now_and_then("metered", _is_metered),
            other_cpu_percent=self._other_cpu_percent(),
            input_idle_s=(
                self._now_and_then("input", _input_idle_s) if self._asks_for_input else None
            ),
            temperature_c=self._now_and_then("temperature", _temperature_c),
            free_memory_bytes=free_memory(),
            free_disk_bytes=self._now_and_then("disk", self._free_disk_bytes),
        )

    def _now_and_then(self, name: str, sensor: Callable[[], _Value]) -> _Value:
        now = time.monotonic()
        kept = self._kept.get(name)
        if kept is None or (now - kept[0] >= _SLOW_S[name] and name not in _BY_PROGRAM):
            kept = self._kept[name] = now, sensor()
        elif now - kept[0] >= _SLOW_S[name]:
            self._kept[name] = now, kept[1]
            threading.Thread(
                target=self._renew, args=(name, sensor), name=f"edge-sdk {name}", daemon=True
            ).start()
        value: _Value = kept[1]  # type: ignore[assignment]
        return value

    def _renew(self, name: str, sensor: Callable[[], object]) -> None:
        """Ask a program without holding up a look: it may hang until it is killed."""
        value = sensor()
        self._kept[name] = time.monotonic(), value

    def _other_cpu_percent(self) -> float | None:
        """Compare with the newest look that is half a second old, or with the oldest there is."""
        now = time.monotonic(), _busy_s(), self._own_cpu_s()
        self._cpu.append(now)
        while len(self._cpu) > 2 and now[0] - self._cpu[1][0] >= _CPU_WINDOW_S:
            self._cpu.pop(0)
        begun, busy_s, own_s = self._cpu[0]
        if now[0] - begun < _CPU_WINDOW_S / 4:
            return None
        used_s = (now[1] - busy_s) - max(0.0, now[2] - own_s)
        share = used_s / (now[0] - begun) / (os.cpu_count() or 1)
        return 100 * min(1.0, max(0.0, share))

    def _free_disk_bytes(self) -> int | None:
        try:
            there = next(x for x in (self._state, *self._state.parents) if x.exists())
            return shutil.disk_usage(there).free
        except OSError:
            return None


def _busy_s() -> float:
    """Return the processor seconds all programs used; waiting for the disk is not using."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)
    return float(sum(times[:8]) - idle)


def _temperature_c() -> float | None:
    return read_temperature(Path("/")).value


def _is_metered() -> bool | None:
    return read_metered(run_command, platform.system()).value


def _input_idle_s() -> float | None:
    """Ask Windows, or logind, which knows of graphical sessions whether they are idle."""
    if sys.platform == "win32":
        return _windows_idle_s()
    if platform.system() != "Linux":
        return None
    sessions = (run_command(_IDLE_HINT) or "").split("\n")
    idle = [_session_idle_s(line.split()[0]) for line in sessions if line.strip()]
    known = [seconds for seconds in idle if seconds is not None]
    return min(known) if known else None


def _session_idle_s(session: str) -> float | None:
    asked = ["IdleHint", "IdleSinceHintMonotonic", "Type"]
    flags = [f"--property={name}" for name in asked]
    printed = run_command(["loginctl", "show-session", session, *flags]) or ""
    told = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    if told.get("Type") not in ("x11", "wayland", "mir"):
        return None
    if told.get("IdleHint") != "yes":
        return 0.0
    since = told.get("IdleSinceHintMonotonic", "")
    return max(0.0, time.monotonic() - int(since) / 1e6) if since.isdigit() else None


def _windows_idle_s() -> float | None:
    import ctypes

    class LastInput(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint), ("tick_ms", ctypes.c_uint))

    last = LastInput(size=ctypes.sizeof(LastInput))
    library = ctypes.windll  # type: ignore[attr-defined]
    if not library.user32.GetLastInputInfo(ctypes.byref(last)):
        return None
    idle_ms: int = (library.kernel32.GetTickCount() - last.tick_ms) % (1 << 32)
    return idle_ms / 1000
