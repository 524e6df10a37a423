"""When a device may train: what its owner allows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import time

from edge_sdk.errors import ConfigError

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Rules that must all hold while a device trains; None switches a rule off.

    What a machine cannot tell stops nothing: one without a battery, a thermometer or a network
    manager trains by the other rules.

    Attributes:
        min_battery_percent: Charge above which it trains on battery; 100 asks for mains.
        allows_metered: Whether it may use a network that costs money.
        max_other_cpu_percent: Of all cores, used by everything but the training and the inference
            of this SDK: the app that embeds it counts as the owner's.
        min_input_idle_s: Since the owner last touched a key or the mouse.
        max_temperature_c: Of the hottest sensor.
        quiet_hours: Local time in which it never trains, such as ``"08:00-18:00"``, or over
            midnight ``"22:00-06:30"``.
        min_free_memory_bytes: Left to other programs; below it training gives its memory back.
        min_free_disk_bytes: Left on the disk of the state folder.
        keeps_memory_s: How long a paused training process keeps its memory, unless it is wanted.
        yields: Whether training takes the processor and the disk only when nobody else wants them.
    """

    min_battery_percent: float | None = 60.0
    allows_metered: bool = False
    max_other_cpu_percent: float | None = 50.0
    min_input_idle_s: float | None = None
    max_temperature_c: float | None = 85.0
    quiet_hours: str | None = None
    min_free_memory_bytes: int | None = 256 << 20
    min_free_disk_bytes: int | None = 512 << 20
    keeps_memory_s: float = 600.0
    yields: bool = True

    def __post_init__(self) -> None:
        for name in ("min_battery_percent", "max_other_cpu_percent"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 100:
                raise ConfigError(f"{name}={value} must be 0 to 100 percent, or None for no rule")
        for name in ("min_input_idle_s", "min_free_memory_bytes", "min_free_disk_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name}={value} must be at least 0, or None for no rule")
        if not self.keeps_memory_s >= 0:
            raise ConfigError(f"keeps_memory_s={self.keeps_memory_s} must be at least 0 seconds")
        if self.quiet_hours is not None:
            read_hours(self.quiet_hours)

    @classmethod
    def always(cls) -> Policy:
        """Return a policy without rules: for servers, tests and demos."""
        return cls(
            min_battery_percent=None,
            allows_metered=True,
            max_other_cpu_percent=None,
            max_temperature_c=None,
            min_free_memory_bytes=None,
            min_free_disk_bytes=None,
            yields=False,
        )


def read_hours(text: str) -> tuple[time, time]:
    """Read ``HH:MM-HH:MM``.

    Raises:
        ConfigError: It is something else, or no time at all.
    """
    found = _HOURS.fullmatch(text)
    if found is None or text[:5] == text[6:]:
        raise ConfigError(f"quiet_hours={text!r} must be two different times like 22:00-06:30")
    begin_h, begin_min, end_h, end_min = (int(part) for part in found.groups())
    return time(begin_h, begin_min), time(end_h, end_min)
