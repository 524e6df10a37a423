"""Amounts of memory as people write them: "700MB", "1.5 GiB"."""

from __future__ import annotations

import math
import re

from edge_sdk.errors import ConfigError

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Read an amount of memory: a number with an optional unit, decimal (MB) or binary (MiB).

    Raises:
        ConfigError: Not a positive amount.
    """
    match = _AMOUNT.fullmatch(text.lower())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"{text!r} is not an amount of memory; write for example 700MB or 1.5GiB")
    amount = math.floor(float(match[1]) * _UNITS[match[2]])
    if amount < 1:
        raise ConfigError(f"{text!r} must be more than nothing")
    return amount


def format_bytes(amount: float) -> str:
    """Write an amount of memory with three digits and a decimal unit: ``704 MB``."""
    size = float(amount)
    for unit in ("B", "kB", "MB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}" if abs(size) < 999.5 else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
