"""From one adapter version and the mean update of a round to the next version, in NumPy.

Every rule is lazy: a rank that nobody trained in a round does not move, and what an optimizer
remembers of it neither decays nor ages. Dense parameters are trained in every round.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.rank_rows import rank_rows
from edge_sdk.wire.task import AggregationSpec, ServerOptimizer, TaskSpec
from server.aggregation.optimizer_state import KEPT, State, empty_state
from server.aggregation.weighted_mean import MeanUpdate

_LARGEST = float(np.finfo(np.float32).max)

Rows = NDArray[np.float64]
"""``(ranks, width)``: the trained ranks of one tensor."""


def step(
    adapter: Arrays, mean: MeanUpdate, spec: TaskSpec, state: State | None
) -> tuple[Arrays, State | None]:
    """Move an adapter by the mean update of a round.

    Arithmetic is float64; numbers that would leave float32 stop at its largest. Memory is one
    adapter of rank r in float32 for the result and, for each array of the state, one copy.

    Args:
        adapter: The current version at rank r; not changed.
        mean: Of the round.
        spec: Of the task.
        state: What this returned after the last round, decoded again; None before the first.

    Returns:
        The next version, and the state after it; None for ``average``, which needs none.
    """
    way = spec.aggregation
    if way.server_optimizer == "average":
        return _average(adapter, mean, way.server_lr), None
    after = {name: array.copy() for name, array in adapter.items()}
    state_after = _copy(state) if state is not None else empty_state(spec)
    trained = _trained_ranks(mean, spec)
    rows, updates = rank_rows(after, spec.adapter), rank_rows(mean.arrays, spec.adapter)
    for name, ranks in trained.items():
        kept = {x: state_after[f"{name}.{x}"] for x in KEPT[way.server_optimizer]}
        memory = {x: array[ranks].astype(np.float64) for x, array in kept.items()}
        move = _RULES[way.server_optimizer](updates[name][ranks], memory, way)
        rows[name][ranks] = _within_float32(rows[name][ranks] + way.server_lr * move)
        for x, array in kept.items():
            array[ranks] = _within_float32(memory[x])
    return after, state_after


def _average(adapter: Arrays, mean: MeanUpdate, server_lr: float) -> Arrays:
    """Add the mean update; what it leaves at zero stays bit-identical."""
    after: Arrays = {}
    for name, before in adapter.items():
        move = server_lr * mean.arrays[name]
        moved = _within_float32(before + move).astype(np.float32)
        after[name] = np.where(move == 0.0, before, moved)
    return after


def _heavy_ball(update: Rows, memory: dict[str, Rows], spec: AggregationSpec) -> Rows:
    """Return ``m <- momentum * m + update``."""
    memory["momentum"] = spec.momentum * memory["momentum"] + update
    return memory["momentum"]


def _adam(update: Rows, memory: dict[str, Rows], spec: AggregationSpec) -> Rows:
    """Return the mean of past updates over the root of the mean of their squares.

    Both means are corrected for having started at zero, by the steps each rank has made.
    """
    first = spec.momentum * memory["momentum"] + (1 - spec.momentum) * update
    square = spec.second_momentum * memory["root_square"] ** 2
    square += (1 - spec.second_momentum) * update**2
    steps = memory["steps"] + 1
    memory.update(momentum=first, root_square=np.sqrt(square), steps=steps)
    root = np.sqrt(square / (1 - spec.second_momentum**steps))
    return first / (1 - spec.momentum**steps) / (root + spec.epsilon)


_RULES: dict[ServerOptimizer, Callable[[Rows, dict[str, Rows], AggregationSpec], Rows]] = {
    "momentum": _heavy_ball,
    "adam": _adam,
}


def _trained_ranks(mean: MeanUpdate, spec: TaskSpec) -> dict[str, NDArray[np.intp]]:
    """Return, for each tensor of the adapter, the rows that are to move."""
    trained: dict[str, NDArray[np.intp]] = {}
    for layer in spec.adapter.layers:
        ranks = np.flatnonzero(mean.touched[layer.name])
        trained[f"{layer.name}.lora_A"] = trained[f"{layer.name}.lora_B"] = ranks
    for dense in spec.adapter.dense:
        trained[dense.name] = np.zeros(1, np.intp)
    return trained


def _copy(state: State) -> State:
    return {name: array.copy() for name, array in state.items()}


def _within_float32(values: Rows) -> Rows:
    return np.clip(values, -_LARGEST, _LARGEST)
