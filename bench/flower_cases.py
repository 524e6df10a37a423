"""What both servers are given in ``bench.against_flower``, and what is measured of each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from bench.byte_relay import ByteRelay
from bench.server_watch import ServerWatch
from edge_sdk.model.model_shape import read_shape
from edge_sdk.wire.payload import Shapes, adapter_shapes
from edge_sdk.wire.task import AdapterSpec

LLAMA_1B: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
TINY: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fleet, one adapter, some rounds; every device returns what it got, a little moved.

    Attributes:
        name: In the tables.
        model: Configuration of the base model; the adapter is on its seven linear layers.
        r: Global rank, which Flower sends to and gets from every device.
        k: Ranks our server sends to and gets from every device.
        devices: All take part in every round.
        rounds: Of the run; what lies between their results is measured.
        has_short_polls: Whether either side asks as often as it can be set to, or as by default.
        is_packed: Whether Flower's adapter is one array, or one for every tensor as in its
            LoRA examples.
        think_s: Seconds every second device takes for its training in one of the rounds.
        think_in_round: Which one; 0 is none.
    """

    name: str
    model: Mapping[str, Any]
    r: int
    k: int
    devices: int
    rounds: int
    has_short_polls: bool = True
    is_packed: bool = True
    think_s: float = 0.0
    think_in_round: int = 0

    def flower_shapes(self) -> Shapes:
        """Return the arrays a Flower device receives and sends."""
        shape = read_shape(self.model)
        targets = list(shape.default_targets)
        layers = shape.target_layers(targets)
        adapter = AdapterSpec(r=self.r, lora_alpha=1.0, target_modules=targets, layers=layers)
        shapes = adapter_shapes(adapter, self.r)
        if not self.is_packed:
            return shapes
        return {"adapter": (sum(rows * columns for rows, columns in shapes.values()),)}


CASES = (
    Case(name="tiny, as shipped", model=TINY, r=4, k=4, devices=2, rounds=6, has_short_polls=False),
    Case(name="tiny, shortest polls", model=TINY, r=4, k=4, devices=2, rounds=6),
    Case(name="same bytes, 4 devices", model=LLAMA_1B, r=8, k=8, devices=4, rounds=3),
    Case(name="same bytes, 16 devices", model=LLAMA_1B, r=8, k=8, devices=16, rounds=2),
    Case(name="k = 8 of r = 32, 4 devices", model=LLAMA_1B, r=32, k=8, devices=4, rounds=2),
    Case(
        name="an array a tensor, 2 devices",
        model=LLAMA_1B,
        r=8,
        k=8,
        devices=2,
        rounds=2,
        is_packed=False,
    ),
)
KILLED = Case(
    name="killed", model=TINY, r=4, k=4, devices=4, rounds=4, think_s=12.0, think_in_round=2
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one server did with one case.

    Attributes:
        server: Whose.
        case: Its name.
        devices: Of the case.
        between_results_s: From every result of an aggregation to the next.
        down_bytes: One device received in one round, with its share of joining; None of a run
            that was cut off in the middle of a round.
        up_bytes: It sent.
        idle_bytes: Memory of the server before the first round.
        first_bytes: Peak of the server's memory up to the first result.
        peak_bytes: Peak of it over the run.
        is_cut_off: Whether the time ran out before the last round was over.
    """

    server: str
    case: str
    devices: int
    between_results_s: list[float]
    down_bytes: float | None
    up_bytes: float | None
    idle_bytes: int
    first_bytes: int
    peak_bytes: int
    is_cut_off: bool

    @property
    def round_s(self) -> float | None:
        """Median seconds of a round; None if there were no two results."""
        return statistics.median(self.between_results_s) if self.between_results_s else None

    def as_row(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return {**asdict(self), "round_s": self.round_s}


def summarize(
    server: str, case: Case, results_at: list[float], watch: ServerWatch, relay: ByteRelay
) -> Measured:
    """Put together what was seen of a run.

    Args:
        server: Whose.
        case: What it was given.
        results_at: Seconds since 1970 of the start and of every result.
        watch: Of its memory.
        relay: Of its bytes.
    """
    started_at, *results = results_at
    is_cut_off = len(results) < case.rounds
    exchanges = case.devices * case.rounds
    return Measured(
        server=server,
        case=case.name,
        devices=case.devices,
        between_results_s=[later - earlier for earlier, later in pairwise(results)],
        down_bytes=None if is_cut_off else relay.down_bytes / exchanges,
        up_bytes=None if is_cut_off else relay.up_bytes / exchanges,
        idle_bytes=watch.peak_bytes(started_at),
        first_bytes=watch.peak_bytes(results[0] if results else float("inf")),
        peak_bytes=watch.peak_bytes(),
        is_cut_off=is_cut_off,
    )
