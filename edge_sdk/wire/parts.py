"""How a large update is cut into numbered parts, so that little of it is ever sent twice."""

from __future__ import annotations

LEAST_PART_BYTES = 256 << 10
MOST_PART_BYTES = 8 << 20
WHOLE_UP_TO_BYTES = 1 << 20
"""An update of at most this size is sent in one body."""

_PARTS = 10


def part_bytes(size_bytes: int) -> int:
    """Return the size of every part but the last one: a tenth of the body, within bounds."""
    return max(LEAST_PART_BYTES, min(MOST_PART_BYTES, -(-size_bytes // _PARTS)))


def cut(body: bytes) -> list[memoryview]:
    """Return the parts of a body, in order, without copying it."""
    step, whole = part_bytes(len(body)), memoryview(body)
    return [whole[start : start + step] for start in range(0, len(body), step)]


def most_parts(limit: int) -> int:
    """Return how many parts a server takes of a body of at most ``limit`` bytes."""
    return 2 * _PARTS + limit // LEAST_PART_BYTES
