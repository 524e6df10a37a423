"""Combine the updates of a round into one: weighted mean, or per number without the extremes."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

import numpy as np

from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.rank_rows import rank_rows
from edge_sdk.wire.task import AggregationSpec, TaskSpec
from server.aggregation.update_spool import UpdateSpool
from server.aggregation.weighted_mean import MeanUpdate, RunningSum, WeightedUpdate


def combine(spec: TaskSpec, updates: Iterable[WeightedUpdate]) -> MeanUpdate:
    """Combine the updates of a round as the task says.

    Memory is one adapter of rank r in float64 and one update, whatever the number of updates.
    ``trimmed_mean`` and ``median`` also keep all updates in a temporary file of 4 bytes per
    number, and their indices in memory, see :class:`server.aggregation.update_spool.UpdateSpool`.

    Args:
        spec: Of the task.
        updates: Consumed one at a time. ``mean`` depends on their order in its last bits, so
            callers who need the same bytes fix it; the others do not depend on it.

    Raises:
        ValueError: There is no update.
        StorageError: There is no room for the temporary file.
    """
    if spec.aggregation.combination == "mean":
        return _mean(spec, updates)
    with UpdateSpool(spec.adapter) as spool:
        for update in updates:
            spool.add(update)
        return _robust_mean(spec, spool)


def _mean(spec: TaskSpec, updates: Iterable[WeightedUpdate]) -> MeanUpdate:
    total = RunningSum(spec.adapter)
    for update in updates:
        total.add(update)
    return total.finish()


def _robust_mean(spec: TaskSpec, spool: UpdateSpool) -> MeanUpdate:
    """Average what is left, per number, of the devices that trained its rank.

    The result is multiplied by their share in the round: in the mean over all devices those
    that did not train a rank count as zero there, and the step of a rank should not depend on
    how few trained it.
    """
    if not len(spool):
        raise ValueError("the mean of no updates does not exist")
    adapter = spec.adapter
    arrays = {name: np.zeros(shape) for name, shape in adapter_shapes(adapter, adapter.r).items()}
    touched = {layer.name: np.zeros(adapter.r, np.bool_) for layer in adapter.layers}
    rows = rank_rows(arrays, adapter)
    layer_of = {f"{layer.name}.lora_A": layer.name for layer in adapter.layers}
    for part in spool.parts():
        devices = len(part.values)
        cut = _left_out(spec.aggregation, devices)
        kept = np.sort(part.values, axis=0)[cut : devices - cut]
        share = devices / len(spool)
        rows[part.tensor][part.rank, part.columns] = share * kept.mean(axis=0, dtype=np.float64)
        if part.tensor in layer_of:
            touched[layer_of[part.tensor]][part.rank] = True
    return MeanUpdate(arrays=arrays, touched=touched)


def _left_out(spec: AggregationSpec, devices: int) -> int:
    """Return how many values are left out at each end; the median keeps the middle one or two.

    The share is multiplied in decimal: 0.29 of 100 are 29, in binary it would be 28.
    """
    if spec.combination == "median":
        return (devices - 1) // 2
    return int(Decimal(repr(spec.trim)) * devices)
