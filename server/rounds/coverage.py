"""Which ranks the means of a task's rounds were made of, drawn again from the assignments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_sdk.sketch import Indices
from server.rounds.adapters import indices_of
from server.rounds.partial_sum import read_members
from server.storage.lookup import find_counted
from server.storage.store import TaskRow, Transaction


def trained_ranks(tx: Transaction, task: TaskRow, numbers: Sequence[int]) -> NDArray[np.float64]:
    """Return how many devices in the mean of each round trained each rank.

    Args:
        tx: Of reading.
        task: The task.
        numbers: Of its rounds.

    Returns:
        ``(len(numbers), r)``: means over the layers.
    """
    spec = task.spec.adapter
    counts = np.zeros((len(numbers), spec.r))
    for row, number in zip(counts, numbers, strict=True):
        for _, indices, devices in _trained(tx, task, number):
            row[indices] += devices
    return counts / len(spec.layers)


def rank_ages(tx: Transaction, task: TaskRow) -> NDArray[np.int64]:
    """Return for how many closed rounds each rank has not been part of a mean.

    Args:
        tx: Of reading.
        task: The task.

    Returns:
        ``(r,)``: in the layer where that is longest ago; 0 for a rank that every layer trained in
        the latest closed round, and the number of closed rounds for one that some layer never
        trained.
    """
    last = tx.last_round(task.name)
    closed = 0 if last is None else last.number - (last.state != "closed")
    ages = np.full((len(task.spec.adapter.layers), task.spec.adapter.r), closed, np.int64)
    is_cold = np.ones(ages.shape, np.bool_)
    for number in range(closed, 0, -1):
        for layer, indices, _ in _trained(tx, task, number):
            ages[layer, indices[is_cold[layer, indices]]] = closed - number
            is_cold[layer, indices] = False
        if not is_cold.any():
            break
    oldest: NDArray[np.int64] = ages.max(axis=0)
    return oldest


def _trained(
    tx: Transaction, task: TaskRow, number: int
) -> Iterator[tuple[int, Indices, NDArray[np.int64] | int]]:
    """Yield layer, ranks and devices on each rank, for all that is part of a round's mean."""
    for update, work in find_counted(tx, task.name, number):
        if update.rank_members is None:
            for layer, indices in enumerate(indices_of(task.seed, task.spec, work)):
                yield layer, indices, 1
        else:
            for layer, members in enumerate(read_members(task.spec.adapter, update.rank_members)):
                indices = np.flatnonzero(members)
                yield layer, indices, members[indices]
