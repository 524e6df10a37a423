"""What passes between the server and the devices of a simulation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from edge_sdk.sketch import Factors, Indices
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import TaskSpec
from server.methods.method import BaseChange, GlobalModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one device is to do in a round.

    Attributes:
        device: Its number.
        round_number: From 1.
        k: How many ranks it trains.
        indices: Which, by the record of the server; a device does not know them.
        slices: Their values, and the dense parameters.
        factors: The factors it trains.
        scale: Of ``B A`` in its forward.
        seed: Orders its examples.
        downlink_bytes: Of what it fetched.
        base_change: Folded into its base by earlier rounds.
    """

    device: int
    round_number: int
    k: int
    indices: list[Indices]
    slices: Arrays
    factors: Factors
    scale: float
    seed: int
    downlink_bytes: int
    base_change: BaseChange = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a device learned.

    Attributes:
        update: After minus before; zero where nothing was trained.
        loss: Mean training loss over its local steps.
        examples: It has.
    """

    update: Arrays
    loss: float
    examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """What a round came to, on the server.

    Attributes:
        aggregation_error: See :func:`server.methods.error.aggregation_error`; None where the
            server has no use for it.
        server_s: CPU seconds of the fold.
    """

    aggregation_error: float | None
    server_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How good a global model is on held-out examples.

    Attributes:
        loss: Mean over the examples.
        accuracy: Share of right classes or choices; None where there are none.
    """

    loss: float
    accuracy: float | None = None


class Server(Protocol):
    """The aggregating side of a simulation."""

    @property
    def spec(self) -> TaskSpec:
        """The task."""

    def give_work(self, device: int, affordable_k: int, now: float) -> Work:
        """Give a device its work in the open round; virtual seconds."""

    def take_update(self, work: Work, lesson: Lesson, now: float) -> int:
        """Take what a device learned; return the bytes it sent."""

    def close(self, number: int, now: float) -> Closed:
        """End a round with the updates it has, at least one."""

    def model(self) -> GlobalModel:
        """Return the newest global model."""


class Learner(Protocol):
    """The learning side: real training, or a stand-in."""

    @property
    def devices(self) -> int | None:
        """How many devices have data; None if any number has."""

    def train(self, work: Work, spec: TaskSpec) -> Lesson:
        """Do the local steps of a device."""

    def evaluate(self, model: GlobalModel, spec: TaskSpec) -> Evaluation | None:
        """Try a global model on held-out examples; None if there are none."""
