"""Balanced draws: one endless stream of slots per task, in which no slot stays away for long.

The stream goes lap after lap through all r slots. Lap 0 is a random permutation; in every later
lap a slot comes at most ``r - spread`` places earlier than in the lap before, where ``spread`` is
the most slots that one sketch takes. So any ``spread`` neighbours in the stream are different, and
a slot is drawn again after at most ``2 r - 1`` draws. The rule looks at places only, never at which
slot stands there: over the task's seed all sets of k neighbours are equally likely.
"""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import SketchError
from edge_sdk.sketch import Indices, check_sizes

_LAPS_AT_ONCE = 64
_REMEMBERED_TASKS = 64
_REMEMBERED_BLOCKS = 16
_OF_LAPS, _OF_LAYERS = 0, 1  # what a part of the task's randomness is for


def balanced_spread(r: int, sketch_sizes: list[int]) -> int:
    """Return the most slots that a sketch takes from the stream.

    A sketch of all r ranks needs no drawing, so it does not count.
    """
    return max((k for k in sketch_sizes if k < r), default=1)


def balanced_sketch(
    task_seed: int, r: int, spread: int, layers: int, drawn_from: int, k: int
) -> list[Indices]:
    """Return the ranks of k neighbouring draws, one index set per adapted layer.

    Each layer has its own fixed random order of the ranks, which its slots stand for.

    Args:
        task_seed: Of the task.
        r: Global rank.
        spread: See :func:`balanced_spread`; the same for all sketches of a task.
        layers: How many layers the adapter has, in the task's order.
        drawn_from: Place of the first draw in the stream, from 0.
        k: Sketch size; a smaller one is a part of a larger one from the same place.

    Returns:
        ``layers`` index sets ``(k,)``, sorted, without repeats, each in ``0 .. r-1``.

    Raises:
        SketchError: No sketch of this task has such sizes, or a place before the first.
    """
    check_sizes(r, k)
    if drawn_from < 0 or not (k <= spread or k == r):
        raise SketchError(
            f"k={k} draws from place {drawn_from}: the place is 0 or more, and a task whose "
            f"largest sketch below r={r} has {spread} ranks draws no more than that, or all {r}"
        )
    if k == r:
        return [np.arange(r, dtype=np.int64)] * layers
    slots = draw_slots(task_seed, r, spread, drawn_from, k)
    return list(np.sort(_orders(task_seed, r, layers)[:, slots], axis=1))


def draw_slots(task_seed: int, r: int, spread: int, start: int, count: int) -> Indices:
    """Return the slots at the places ``start .. start + count - 1`` of the stream, in order."""
    stream = _stream(task_seed, r, spread)
    places = range(start // r, (start + count - 1) // r + 1)
    laps = np.concatenate([stream.lap(number) for number in places])
    first = start - places[0] * r
    return laps[first : first + count]


class _Stream:
    """The laps of one task.

    A lap follows from the one before it. The first lap of every block of laps is kept, so that
    a far one is reached from near.
    """

    def __init__(self, seed: int, r: int, spread: int) -> None:
        self._seed = seed
        self._ahead = r - spread
        self._lock = threading.Lock()
        self._starts = [np.argsort(_raw(seed, r, _OF_LAPS), kind="stable")]
        self._block = lru_cache(_REMEMBERED_BLOCKS)(self._make_block)

    def lap(self, number: int) -> Indices:
        """Return one lap, ``(r,)``: every slot once."""
        block, row = divmod(number, _LAPS_AT_ONCE)
        with self._lock:
            while len(self._starts) <= block:
                self._starts.append(self._block(len(self._starts) - 1)[-1].copy())
            lap: Indices = self._block(block)[row]
            return lap

    def _make_block(self, block: int) -> Indices:
        """Return the laps of a block and the first one of the next."""
        laps = [self._starts[block].tolist()]
        r = len(laps[0])
        raw = _raw(self._seed, _LAPS_AT_ONCE * r, _OF_LAPS, 1 + block).tolist()
        for i in range(0, len(raw), r):
            laps.append(next_lap(laps[-1], self._ahead, raw[i : i + r]))
        return np.array(laps, dtype=np.int64)


def next_lap(before: list[int], ahead: int, raw: list[int]) -> list[int]:
    """Return the lap that follows another one.

    Place after place, a slot is chosen with equal chances among those that may stand there and
    do not stand earlier. There always is one: the first ``ahead + 1`` of the lap before may come
    first, and every place lets one more in.

    Args:
        before: The lap before, every slot once.
        ahead: How many places earlier than there a slot may come.
        raw: One random 64-bit number per place.
    """
    allowed, after = before[: ahead + 1], []
    for place, number in enumerate(raw):
        chosen = number % len(allowed)
        after.append(allowed[chosen])
        entering = place + ahead + 1
        allowed[chosen] = before[entering] if entering < len(before) else allowed[-1]
        if entering >= len(before):
            allowed.pop()
    return after


@lru_cache(_REMEMBERED_TASKS)
def _stream(seed: int, r: int, spread: int) -> _Stream:
    return _Stream(seed, r, spread)


@lru_cache(_REMEMBERED_TASKS)
def _orders(seed: int, r: int, layers: int) -> Indices:
    """Return the rank that each slot stands for in each layer, ``(layers, r)``."""
    raw = _raw(seed, layers * r, _OF_LAYERS).reshape(layers, r)
    return np.argsort(raw, axis=1, kind="stable").astype(np.int64)


def _raw(seed: int, count: int, *part: int) -> NDArray[np.uint64]:
    """Return random 64-bit numbers, the same on every machine and in every release of NumPy."""
    source = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=part))
    return np.asarray(source.random_raw(count))
