"""One reading of one sensor: its value and where that came from, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

# What drivers, libraries and half-written system files are known to raise.
SENSOR_FAILURES = (OSError, RuntimeError, ValueError, AttributeError, psutil.Error)


@dataclass(frozen=True)
class Reading(Generic[T_co]):
    """A measured value, or the reason why it could not be measured.

    Attributes:
        value: The value, or None if this machine does not tell.
        source: A library, file, environment variable or command; for a missing value the reason.
    """

    value: T_co | None
    source: str


def ask(source: str, sensor: Callable[[], T | None]) -> Reading[T]:
    """Read a sensor that may not be there or may fail: a failure becomes the reason."""
    try:
        value = sensor()
    except (PermissionError, psutil.AccessDenied):
        return Reading(None, f"{source}: permission denied")
    except SENSOR_FAILURES as error:
        return Reading(None, f"{source}: {str(error) or type(error).__name__}")
    return Reading(value, source if value is not None else f"{source}: no sensor")


def first_known(*readings: Reading[T]) -> Reading[T]:
    """Return the first reading that has a value; without any, the first one's reason."""
    return next((reading for reading in readings if reading.value is not None), readings[0])
