"""A server that is a method and an adapter in memory: for every method, real or not on the wire.

Bodies of updates are encoded and decoded as on the wire, so that their bytes and what their
numbers lose are real.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from edge_sdk.errors import ConfigError
from edge_sdk.sketch import Factors, derive_seed, largest_sketch
from edge_sdk.wire import payload
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import TaskSpec
from edge_sdk.wire.update_body import decode_update, encode_update
from server.aggregation.weighted_mean import (
    WeightedUpdate,
    cut_slice,
    initial_adapter,
    update_weight,
)
from server.methods.base_change import rest_of
from server.methods.cost import downlink_bytes
from server.methods.error import aggregation_error
from server.methods.method import GlobalModel, Method, Turn
from simulation.names import device_name
from simulation.work import Closed, Lesson, Work

_OF_FOLDS = 3  # the adapter, sketches and data orders come from other streams of the seed


@dataclass(frozen=True, slots=True)
class MethodState:
    """All that a server under a method remembers between rounds.

    Attributes:
        model: The newest.
        rounds: Closed so far.
        drawn: Ranks that balanced draws have given out.
        taken_part: Device to the number of its updates, and the round of the first one.
    """

    model: GlobalModel
    rounds: int = 0
    drawn: int = 0
    taken_part: dict[str, tuple[int, int]] = field(default_factory=dict)


class MethodServer:
    """One task under one method.

    Args:
        spec: Of the task.
        method: How rounds become adapters.
        seed: Of the task.
        start: Where an interrupted run stood; None begins anew.
        name_of: Returns the name of a device, which its ranks are drawn by.
    """

    def __init__(
        self,
        spec: TaskSpec,
        method: Method,
        seed: int,
        start: MethodState | None = None,
        name_of: Callable[[int], str] = device_name,
    ) -> None:
        self._name_of = name_of
        self._spec = spec
        self._method = method
        self._seed = seed
        self.state = start or MethodState(_initial(spec, seed))
        self._updates: dict[str, tuple[Work, Lesson, Arrays]] = {}

    @property
    def spec(self) -> TaskSpec:
        """The task."""
        return self._spec

    def model(self) -> GlobalModel:
        """Return the newest global model."""
        return self.state.model

    def give_work(self, device: int, affordable_k: int, now: float) -> Work:
        """Give a device its ranks of the newest model.

        Raises:
            ConfigError: It can afford none.
        """
        spec, method, model = self._spec, self._method, self.state.model
        number = self.state.rounds + 1
        k = largest_sketch(spec.policy.sketch_sizes, affordable_k)
        if k is None:
            raise ConfigError(f"k={affordable_k} is below every sketch size of the task")
        turn = Turn(
            seed=derive_seed(self._seed, number, self._name_of(device)),
            task_seed=self._seed,
            drawn_from=self._take_draws(k) if spec.policy.sketching == "balanced" else None,
        )
        indices = method.draw(spec, k, turn)
        return Work(
            device=device,
            round_number=number,
            k=k,
            indices=indices,
            slices=cut_slice(model.adapter, spec.adapter, indices),
            factors=method.factors(number),
            scale=method.scaling(spec.adapter, k),
            seed=turn.seed,
            downlink_bytes=downlink_bytes(method, spec, model, k),
            base_change=(
                rest_of(spec, model, indices) if method.freezes_rest else model.base_change
            ),
        )

    def take_update(self, work: Work, lesson: Lesson, now: float) -> int:
        """Encode and decode an update, and keep it for the fold."""
        body, received = _sent(self._spec, work, lesson)
        self._updates[self._name_of(work.device)] = (work, lesson, received)
        return body

    def close(self, number: int, now: float) -> Closed:
        """Fold the updates in the order of the devices' names."""
        state, spec = self.state, self._spec
        for name in self._updates:
            count, first = state.taken_part.get(name, (0, number))
            state.taken_part[name] = (count + 1, first)
        updates = [self._weighted(name, number) for name in sorted(self._updates)]
        self._updates.clear()
        source = np.random.SeedSequence(self._seed, spawn_key=(_OF_FOLDS, number))
        rng = np.random.default_rng(source)
        before, began = state.model, time.process_time()
        after = self._method.fold(spec, before, iter(updates), rng)
        server_s = time.process_time() - began
        error = aggregation_error(self._method, spec, before, updates, after)
        self.state = replace(state, model=after, rounds=number)
        return Closed(aggregation_error=error, server_s=server_s)

    def _weighted(self, name: str, number: int) -> WeightedUpdate:
        work, lesson, received = self._updates[name]
        count, first = self.state.taken_part[name]
        weight = update_weight(
            self._spec.aggregation,
            examples=lesson.examples,
            participation=count / (number - first + 1),
            staleness=0,
        )
        return WeightedUpdate(arrays=received, indices=work.indices, weight=weight)

    def _take_draws(self, k: int) -> int:
        before = self.state.drawn
        self.state = replace(self.state, drawn=before + k)
        return before


def _initial(spec: TaskSpec, seed: int) -> GlobalModel:
    """Return the adapter that a server starts a task of this seed with."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    return GlobalModel(adapter=initial_adapter(spec.adapter, rng))


def _sent(spec: TaskSpec, work: Work, lesson: Lesson) -> tuple[int, Arrays]:
    """Return the bytes of an update on the wire, and what of it arrives.

    A factor that was not trained is not sent; it arrives as zeros.
    """
    if work.factors == "AB":
        body = encode_update(lesson.update, spec, work.seed)
        return len(body), decode_update(body, spec, work.k)[0]
    live = {name: array for name, array in lesson.update.items() if _is_sent(name, work.factors)}
    body = payload.encode(live, spec.adapter.wire_dtype)
    shapes = {name: array.shape for name, array in live.items()}
    arrived, _ = payload.decode(body, shapes, spec.adapter.wire_dtype)
    frozen = {n: np.zeros_like(x) for n, x in lesson.update.items() if n not in live}
    return len(body), arrived | frozen


def _is_sent(name: str, factors: Factors) -> bool:
    factor = name.rpartition(".lora_")[2] if ".lora_" in name else ""
    return factor not in ("A", "B") or factor in factors
