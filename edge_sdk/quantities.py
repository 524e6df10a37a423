"""Amounts as people write them: "700MB", "1.5 GiB", "10min", "2Mbit/s"."""

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
_SECONDS = {"": 1, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400}
_BITS_PER_S = {"bit/s": 1, "kbit/s": 1e3, "mbit/s": 1e6, "gbit/s": 1e9}
_BYTES_PER_S = {"b/s": 1, "kb/s": 1e3, "mb/s": 1e6, "gb/s": 1e9}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z/]*)\s*")


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


def parse_seconds(text: str) -> float:
    """Read a duration: a number with ``s``, ``min``, ``h`` or ``d``; a bare number is seconds.

    Raises:
        ConfigError: Not a positive duration.
    """
    match = _AMOUNT.fullmatch(text.lower())
    if match is None or match[2] not in _SECONDS or float(match[1]) <= 0:
        raise ConfigError(f"{text!r} is not a duration; write for example 90s, 10min or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def parse_rate(text: str) -> float:
    """Read the rate of a link, ``2Mbit/s`` or ``250kB/s``, and return bytes per second.

    Raises:
        ConfigError: Not a positive rate.
    """
    match = _AMOUNT.fullmatch(text.lower())
    unit = match[2] if match else ""
    if match is None or not (unit in _BITS_PER_S or unit in _BYTES_PER_S) or float(match[1]) <= 0:
        raise ConfigError(f"{text!r} is not the rate of a link; write for example 2Mbit/s or 1MB/s")
    if unit in _BITS_PER_S:
        return float(match[1]) * _BITS_PER_S[unit] / 8
    return float(match[1]) * _BYTES_PER_S[unit]


def format_seconds(seconds: float) -> str:
    """Write a duration for people: ``0.3 s``, ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole, minutes = round(seconds), round(seconds / 60)
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_bytes(amount: float) -> str:
    """Write an amount of memory with three digits and a decimal unit: ``704 MB``."""
    size = float(amount)
    for unit in ("B", "kB", "MB"):
        if abs(size) < 999.5:  # what rounds to a thousand is one of the next unit
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
