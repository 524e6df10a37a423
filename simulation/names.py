"""What the devices of a simulation are called."""

from __future__ import annotations


def device_name(number: int) -> str:
    """Return the name of a device; names sort as numbers do."""
    return f"device-{number:06d}"
