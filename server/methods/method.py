"""What a federated LoRA method decides: who trains what, at which scale, and what comes of it.

All methods are pure: no clock, file or state of their own. ``BA`` of a device stands for the
matrices it ends its local steps with, ``p`` for its share in the weight of the round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_sdk.sketch import Factors, Indices, lora_scaling, sketched_scaling
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec, TaskSpec
from server.aggregation.optimizer_state import State
from server.aggregation.weighted_mean import WeightedUpdate, cut_slice

BaseChange = Mapping[str, NDArray[np.float32]]
"""Layer name to what is added to its frozen weight, ``(d_out, d_in)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalModel:
    """What a round starts from and ends with; nothing in it is changed in place.

    Attributes:
        adapter: Every tensor of ``adapter_shapes(spec, spec.r)``, float32.
        base_change: Folded into the frozen weights so far; empty for most methods.
        change_rank: Rank of what was folded in by the last round: what a device that was there
            has yet to fetch.
        state: Of the server optimizer.
    """

    adapter: Arrays
    base_change: BaseChange = field(default_factory=dict)
    change_rank: int = 0
    state: State | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Which device draws its ranks, and when.

    Attributes:
        seed: Of the device in this round, see :func:`edge_sdk.sketch.derive_seed`.
        task_seed: Of the task.
        drawn_from: Place of its draws among all draws of the task; None where each device draws
            independently.
    """

    seed: int
    task_seed: int
    drawn_from: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What one device ended its local steps with.

    Attributes:
        arrays: Its ranks and the dense parameters, float64.
        k: How many ranks.
        share: ``p``: its weight over that of the round.
    """

    arrays: dict[str, NDArray[np.float64]]
    k: int
    share: float


def _as_given(spec: TaskSpec, devices: Sequence[Trained]) -> Sequence[Trained]:
    return devices


class Fold(Protocol):
    """Makes the next global model of a round."""

    def __call__(
        self,
        spec: TaskSpec,
        model: GlobalModel,
        updates: Iterable[WeightedUpdate],
        rng: np.random.Generator,
    ) -> GlobalModel:
        """Return what the next round starts from.

        Args:
            spec: Of the task.
            model: What the devices started from.
            updates: After minus before, of every device of the round.
            rng: Of this round.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One federated LoRA method.

    Attributes:
        draw: Returns the ranks a device trains, one index set ``(k,)`` per layer, sorted.
        scaling: Returns the factor of ``B A`` in the forward of a device that trains k ranks.
        fold: What becomes of a round.
        turns: The factors that are trained, and sent, in one round after the other, over and over.
        fetched: The factors a device must fetch before a round.
        freezes_rest: Whether a device also fetches the ranks it does not train, and computes with
            them as they are.
        is_sketch: Whether a device's ranks are a sample of the global adapter; otherwise they
            are, at ``scaling``, a model of their own.
        has_equal_ranks: Whether every device trains all ranks of the adapter.
        weighs: Returns the devices of a round with the shares that they have in the mean.
    """

    draw: Callable[[TaskSpec, int, Turn], list[Indices]]
    scaling: Callable[[AdapterSpec, int], float]
    fold: Fold
    turns: tuple[Factors, ...] = ("AB",)
    fetched: Factors = "AB"
    freezes_rest: bool = False
    is_sketch: bool = False
    has_equal_ranks: bool = False
    weighs: Callable[[TaskSpec, Sequence[Trained]], Sequence[Trained]] = _as_given

    def factors(self, round_number: int) -> Factors:
        """Return the factors whose turn it is in a round, from 1."""
        return self.turns[(round_number - 1) % len(self.turns)]


def first_ranks(spec: TaskSpec, k: int, turn: Turn) -> list[Indices]:
    """Return the first k ranks of every layer, whoever asks."""
    return [np.arange(k, dtype=np.int64)] * len(spec.adapter.layers)


def sketch_scaling(adapter: AdapterSpec, k: int) -> float:
    """Return ``lora_scaling * r / k``; under plain scaling that is ``alpha / k``."""
    return sketched_scaling(adapter.lora_alpha, adapter.r, k, adapter.use_rslora)


def global_scaling(adapter: AdapterSpec, k: int = 0) -> float:
    """Return the scaling of the global adapter, whatever k is: a rank is the same everywhere."""
    return lora_scaling(adapter.lora_alpha, adapter.r, adapter.use_rslora)


def trained(
    spec: TaskSpec, model: GlobalModel, updates: Iterable[WeightedUpdate]
) -> Sequence[Trained]:
    """Return what every device of a round ended with.

    Raises:
        ValueError: There is no update.
    """
    found = list(updates)
    total = sum(update.weight for update in found)
    if total <= 0:
        raise ValueError("the mean of no updates does not exist")
    return [
        Trained(
            arrays=_after(spec, model, update),
            k=len(update.indices[0]),
            share=update.weight / total,
        )
        for update in found
    ]


def dense_means(spec: TaskSpec, devices: Sequence[Trained]) -> Arrays:
    """Return the weighted means of the dense parameters, which every device trains whole."""
    return {
        dense.name: narrowed(sum(x.share * x.arrays[dense.name] for x in devices))
        for dense in spec.adapter.dense
    }


def narrowed(values: Any) -> NDArray[np.float32]:
    """Return float32 numbers."""
    return np.asarray(values, dtype=np.float32)


def _after(
    spec: TaskSpec, model: GlobalModel, update: WeightedUpdate
) -> dict[str, NDArray[np.float64]]:
    before = cut_slice(model.adapter, spec.adapter, update.indices)
    return {
        name: array.astype(np.float64) + update.arrays[name].astype(np.float64)
        for name, array in before.items()
    }
