"""Read the small text files in which a kernel reports; whatever is in them, nothing is raised."""

from __future__ import annotations

import math
from pathlib import Path

from edge_sdk.sensors.reading import Reading

_LARGEST = 1 << 63  # no kernel counter is larger, and JSON readers take no more


def is_this_machine(root: Path) -> bool:
    """Say whether ``root`` is the machine we run on and not a captured one."""
    return root == Path("/")


def text(path: Path) -> Reading[str]:
    """Return the content of a file, NUL bytes taken as spaces, or why it cannot be read."""
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return Reading(None, f"{path}: not on this system")
    except PermissionError:
        return Reading(None, f"{path}: permission denied")
    except (OSError, ValueError) as error:
        return Reading(None, f"{path}: not readable ({error})")
    return Reading(content.replace("\0", " ").strip(), str(path))


def lines(path: Path) -> list[str]:
    """Return the lines of a file; none if it cannot be read."""
    return (text(path).value or "").splitlines()


def number(path: Path) -> Reading[int]:
    """Return the whole number a file begins with, or why there is none."""
    content = text(path)
    if content.value is None:
        return Reading(None, content.source)
    value = whole((content.value.split() or [""])[0])
    return Reading(value, str(path) if value is not None else f"{path}: not a number")


def keyed(path: Path, separator: str | None = None) -> dict[str, str]:
    """Return the first value of every key in lines of ``key value`` or ``key: value``."""
    found: dict[str, str] = {}
    for line in lines(path):
        key, *values = [part.strip() for part in line.split(separator, 1)]
        if values and values[0]:
            found.setdefault(key, values[0])
    return found


def children(folder: Path, prefix: str = "") -> list[Path]:
    """Return what is in a folder under names with this prefix, sorted; none if it is unreadable."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.startswith(prefix))
    except (OSError, ValueError):
        return []


def whole(word: str) -> int | None:
    """Return a word as a whole number that a kernel could mean, else None."""
    try:
        value = int(word)
    except ValueError:
        return None
    return value if abs(value) < _LARGEST else None


def fraction(word: str) -> float | None:
    """Return a word as a finite number, else None."""
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
