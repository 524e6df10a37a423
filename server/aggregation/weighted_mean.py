"""From updates on the ranks of one adapter to their weighted mean, in NumPy; sums are float64.

The rule is ``mean = sum_i w_i scatter(update_i) / sum_i w_i``, over all devices of the round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import NotFinite
from edge_sdk.sketch import Indices, take
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.protocol import MAX_COUNT
from edge_sdk.wire.rank_rows import each_rank_rows, from_rank_rows, row_shapes
from edge_sdk.wire.task import AdapterSpec, AggregationSpec

_HEAD_STD = 0.02
_MAX_STEP = 1e30
_SMALLEST_PARTICIPATION = 0.1
_SMALLEST_WEIGHT = 1e-100


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedUpdate:
    """What one device, or a relay for several, adds to a round.

    Attributes:
        arrays: Its update at rank k, in the number format it travelled in, or decoded from codes
            when a tensor is asked for.
        indices: The ranks of each layer, from the server's own record.
        weight: Its share in the mean, before normalization.
        members: Of a relay: ``(layers, r)``, how many of its devices trained each rank.
    """

    arrays: Mapping[str, NDArray[Any]]
    indices: Sequence[Indices]
    weight: float
    members: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanUpdate:
    """What a round as a whole says: one update at rank r.

    Attributes:
        arrays: Every tensor of ``adapter_shapes(spec, spec.r)``; zero on ranks nobody trained.
        touched: For each layer, ``(r,)``: whether any device trained the rank. Dense parameters
            are trained by every device.
    """

    arrays: dict[str, NDArray[np.float64]]
    touched: dict[str, NDArray[np.bool_]]


def initial_adapter(spec: AdapterSpec, rng: np.random.Generator) -> Arrays:
    """Draw version 0: A as PEFT does (Kaiming uniform with ``a = sqrt(5)``), B zero.

    Dense weights are normal with standard deviation 0.02, dense biases zero.

    Returns:
        Every tensor of ``adapter_shapes(spec, spec.r)``, float32.
    """
    arrays: Arrays = {}
    for layer in spec.layers:
        bound = 1.0 / np.sqrt(layer.d_in)
        A = rng.uniform(-bound, bound, size=(spec.r, layer.d_in))
        arrays[f"{layer.name}.lora_A"] = A.astype(np.float32)
        arrays[f"{layer.name}.lora_B"] = np.zeros((layer.d_out, spec.r), np.float32)
    for dense in spec.dense:
        is_bias = len(dense.shape) == 1
        values = np.zeros(dense.shape) if is_bias else rng.normal(0.0, _HEAD_STD, dense.shape)
        arrays[dense.name] = values.astype(np.float32)
    return arrays


def cut_slice(adapter: Arrays, spec: AdapterSpec, indices: Sequence[Indices]) -> Arrays:
    """Copy the ranks of one device, and the dense parameters whole.

    Args:
        adapter: Every tensor of ``adapter_shapes(spec, spec.r)``.
        spec: Names and order of the layers.
        indices: One index set per layer, each ``(k,)``.

    Returns:
        Every tensor of ``adapter_shapes(spec, k)``.
    """
    arrays: Arrays = {}
    for layer, ranks in zip(spec.layers, indices, strict=True):
        A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        arrays[B], arrays[A] = take(adapter[B], adapter[A], ranks)
    for dense in spec.dense:
        arrays[dense.name] = adapter[dense.name]
    return arrays


def update_weight(
    spec: AggregationSpec, *, examples: int, participation: float, staleness: int
) -> float:
    """Return the weight of one device in the weighted mean of a round, above 0.

    Args:
        spec: How the task weighs.
        examples: Training examples of the device.
        participation: Share of the rounds since its first one in which an update of the device
            counted. Below 0.1 it is taken as 0.1: one rare device must not outweigh a round.
        staleness: Adapter versions the update is behind.
    """
    weights = {
        "uniform": 1.0,
        "examples": float(examples),
        "inverse_probability": 1.0 / max(participation, _SMALLEST_PARTICIPATION),
    }
    return late_weight(spec, weights[spec.weighting], staleness)


def late_weight(spec: AggregationSpec, weight: float, staleness: int) -> float:
    """Return what is left of a weight when its update counts some adapter versions later."""
    left: float = weight * (1.0 + staleness) ** -spec.staleness_exponent
    return max(left, _SMALLEST_WEIGHT)


def weight_bounds(spec: AggregationSpec, members: int) -> tuple[float, float]:
    """Return the least and the most that the updates of some devices weigh together, in time."""
    most = {
        "uniform": 1.0,
        "examples": float(MAX_COUNT),
        "inverse_probability": 1.0 / _SMALLEST_PARTICIPATION,
    }
    return float(members), members * most[spec.weighting]


def check_magnitude(update: Arrays, server_lr: float) -> None:
    """Refuse an update whose step could push the adapter out of the float32 numbers.

    Raises:
        NotFinite: A step ``server_lr * update`` beyond 1e30.
    """
    for name, array in update.items():
        largest = float(np.abs(array).max()) * max(server_lr, 1.0)
        if largest > _MAX_STEP:
            raise NotFinite(f"tensor {name} would move the adapter by {largest:.1e}: it diverged")


class RunningSum:
    """A weighted sum of updates in rank space, one update at a time.

    Memory is that of one rank-r adapter in float64, whatever the number of updates. Sums form a
    monoid under :meth:`merge`, so partial sums of parts of a cohort can be combined. Float sums
    depend on the order in their last bits, so callers who need the same bytes fix the order.

    Args:
        spec: Of the adapter; ``r`` gives the shapes.
    """

    def __init__(self, spec: AdapterSpec) -> None:
        self._spec = spec
        self._rows = {
            name: np.zeros((rows, width))
            for name, (rows, width) in row_shapes(spec, spec.r).items()
        }
        self._members = np.zeros((len(spec.layers), spec.r), np.int64)
        self.total_weight = 0.0

    def add(self, update: WeightedUpdate) -> None:
        """Scatter one update onto its ranks."""
        ranks_of: dict[str, list[int]] = {}
        for row, (layer, ranks) in enumerate(zip(self._spec.layers, update.indices, strict=True)):
            for name in (f"{layer.name}.lora_A", f"{layer.name}.lora_B"):
                ranks_of[name] = ranks.tolist()
            self._members[row, ranks] += 1 if update.members is None else update.members[row]
        for name, rows in each_rank_rows(update.arrays, self._spec):
            _add_rows(self._rows[name], rows, ranks_of.get(name, [0]), update.weight)
        self.total_weight += update.weight

    def merge(self, other: RunningSum) -> None:
        """Add another partial sum of the same round."""
        for name, rows in other._rows.items():
            self._rows[name] += rows
        self._members += other._members
        self.total_weight += other.total_weight

    def members(self) -> NDArray[np.int64]:
        """Return how many devices trained each rank of each layer, ``(layers, r)``."""
        return self._members.copy()

    def finish(self) -> MeanUpdate:
        """Turn the sum into the weighted mean, in place; nothing can be added afterwards.

        Raises:
            ValueError: Nothing was added, or it was finished before.
        """
        if self.total_weight <= 0:
            raise ValueError("the mean of no updates does not exist")
        sums, self._rows = self._rows, {}
        for rows in sums.values():
            rows /= self.total_weight
        self.total_weight = 0.0
        names = [layer.name for layer in self._spec.layers]
        touched = dict(zip(names, self._members > 0, strict=True))
        return MeanUpdate(arrays=from_rank_rows(sums, self._spec), touched=touched)


def _add_rows(
    sums: NDArray[np.float64], rows: NDArray[Any], ranks: Sequence[int], weight: float
) -> None:
    """Add ``weight`` times each row onto the sum of its rank, neighbours together.

    Args:
        sums: ``(r, width)``.
        rows: ``(k, width)``.
        ranks: ``k`` of them, sorted.
        weight: Of the update.
    """
    rows = rows.astype(np.float32, copy=False)
    first = 0
    for last, rank in enumerate(ranks, 1):
        if last == len(ranks) or ranks[last] != rank + 1:
            some = rows[first:last]
            total = sums[rank + 1 + first - last : rank + 1]
            np.add(total, some if weight == 1.0 else weight * some.astype(np.float64), out=total)
            first = last
