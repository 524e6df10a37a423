"""From one adapter version and the updates on its ranks to the next version, in NumPy.

The rule is ``X <- X + server_lr * sum_i w_i scatter(update_i) / sum_i w_i``; sums are float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import NotFinite
from edge_sdk.sketch import Indices, scatter_add, take
from edge_sdk.wire.messages import AdapterSpec, Weighting
from edge_sdk.wire.payload import Arrays, adapter_shapes

_HEAD_STD = 0.02
_MAX_STEP = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedUpdate:
    """What one device adds to a round.

    Attributes:
        arrays: Its update at rank k.
        indices: The ranks of each layer, from the server's own record.
        weight: Its share in the mean, before normalization.
    """

    arrays: Arrays
    indices: Sequence[Indices]
    weight: float


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


def update_weight(weighting: Weighting, examples: int) -> float:
    """Return the weight of one device: equal for all, or its number of examples."""
    return 1.0 if weighting == "uniform" else float(examples)


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
    monoid under :meth:`merge`, so partial sums of parts of a cohort can be combined.

    Args:
        spec: Of the adapter; ``r`` gives the shapes.
    """

    def __init__(self, spec: AdapterSpec) -> None:
        self._spec = spec
        self._sums: dict[str, NDArray[np.float64]] = {
            name: np.zeros(shape) for name, shape in adapter_shapes(spec, spec.r).items()
        }
        self.total_weight = 0.0

    def add(self, update: WeightedUpdate) -> None:
        """Scatter one update onto its ranks."""
        for layer, ranks in zip(self._spec.layers, update.indices, strict=True):
            A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
            scatter_add(
                self._sums[B],
                self._sums[A],
                update.arrays[B].astype(np.float64),
                update.arrays[A].astype(np.float64),
                ranks,
                update.weight,
            )
        for dense in self._spec.dense:
            self._sums[dense.name] += update.weight * update.arrays[dense.name].astype(np.float64)
        self.total_weight += update.weight

    def merge(self, other: RunningSum) -> None:
        """Add another partial sum of the same round."""
        for name, array in other._sums.items():
            self._sums[name] += array
        self.total_weight += other.total_weight

    def mean(self) -> dict[str, NDArray[np.float64]]:
        """Return the weighted mean update at rank r; ranks nobody trained are zero.

        Raises:
            ValueError: Nothing was added.
        """
        if self.total_weight <= 0:
            raise ValueError("the mean of no updates does not exist")
        return {name: array / self.total_weight for name, array in self._sums.items()}

    def apply(self, adapter: Arrays, server_lr: float) -> Arrays:
        """Return the next adapter version; what the mean leaves at zero stays bit-identical."""
        if self.total_weight <= 0:
            raise ValueError("an adapter cannot be moved by no updates")
        after: Arrays = {}
        for name, before in adapter.items():
            step = server_lr * (self._sums[name] / self.total_weight)
            moved = (before + step).astype(np.float32)
            after[name] = np.where(step == 0.0, before, moved)
        return after


def fold(
    adapter: Arrays, spec: AdapterSpec, server_lr: float, updates: Iterable[WeightedUpdate]
) -> Arrays:
    """Return the next version of an adapter.

    Args:
        adapter: The current version at rank r.
        spec: Of the adapter.
        server_lr: Step size on the mean update.
        updates: Consumed one at a time, in the order given; float sums depend on it in the last
            bits, so callers fix the order.
    """
    total = RunningSum(spec)
    for update in updates:
        total.add(update)
    return total.apply(adapter, server_lr)
