"""What adding one update to the sum of a round costs, against a plain pass over its bytes.

A plain pass is ``np.copyto`` of the update's bytes into a buffer that is already there: the least
that anything can do that reads all of it and writes as much. Folding is everything between the
bytes of an update in memory and their place in the float64 sum: finding its tensors, drawing its
ranks again, and adding. Reading the file and its SHA-256 come before that and are listed apart.

Both are measured in turns in one process, with the processor time of the one thread that does
them; medians. Sums are of r ranks, so folding moves 16 bytes of sum for every number it adds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edge_sdk.model.model_shape import read_shape
from edge_sdk.sketch import draw_sketch
from edge_sdk.wire.payload import adapter_shapes, encode, view
from edge_sdk.wire.task import AdapterSpec, WireDtype
from server.aggregation.weighted_mean import RunningSum, WeightedUpdate

_TURNS = 15
_UPDATES = 4


def measure_fold(
    config: Mapping[str, Any], r: int, k: int, wire_dtype: WireDtype
) -> dict[str, Any]:
    """Return a row of the report: milliseconds, and how many plain passes a fold costs.

    Args:
        config: Of the base model.
        r: Global rank.
        k: Sketch size of the updates.
        wire_dtype: Number format of the updates.
    """
    shape = read_shape(config)
    targets = list(shape.default_targets)
    spec = AdapterSpec(
        r=r,
        lora_alpha=2.0 * r,
        target_modules=targets,
        layers=shape.target_layers(targets),
        wire_dtype=wire_dtype,
    )
    shapes = adapter_shapes(spec, k)
    rng = np.random.default_rng(0)
    bodies = [
        encode({n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}, wire_dtype)
        for _ in range(_UPDATES)
    ]
    total = RunningSum(spec)
    target = np.empty(len(bodies[0]), np.uint8)

    def fold(turn: int) -> None:
        total.add(
            WeightedUpdate(
                arrays=view(bodies[turn % _UPDATES], shapes, wire_dtype),
                indices=draw_sketch(turn, r, k, len(spec.layers)),
                weight=1.0,
            )
        )

    def copy(turn: int) -> None:
        np.copyto(target, np.frombuffer(bodies[turn % _UPDATES], np.uint8))

    def check(turn: int) -> None:
        hashlib.sha256(bodies[turn % _UPDATES]).digest()

    fold_ms, copy_ms, sha256_ms = _in_turns(fold, copy, check)
    return {
        "wire_dtype": wire_dtype,
        "update_bytes": len(bodies[0]),
        "plain_pass_ms": copy_ms,
        "fold_ms": fold_ms,
        "passes": fold_ms / copy_ms,
        "sha256_ms": sha256_ms,
    }


def _in_turns(*ways: Callable[[int], None]) -> list[float]:
    """Return the median milliseconds of processor time of each way."""
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(_TURNS + 1):
        for way, found in zip(ways, times, strict=True):
            begun = time.thread_time()
            way(turn)
            found.append(1000 * (time.thread_time() - begun))
    return [float(np.median(found[1:])) for found in times]
