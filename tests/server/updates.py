"""Random updates of devices, and sums over them in plain Python."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from edge_sdk.sketch import draw_sketch
from edge_sdk.wire.task import AdapterSpec
from server.aggregation.weighted_mean import WeightedUpdate
from tests.server.tasks import random_arrays, tiny_spec

ADAPTER = tiny_spec().adapter


def an_update(
    seed: int, k: int, weight: float = 1.0, spec: AdapterSpec = ADAPTER, scale: float = 0.1
) -> WeightedUpdate:
    """One device's random update on the ranks its seed draws."""
    indices = draw_sketch(seed, spec.r, k, len(spec.layers))
    arrays = random_arrays(spec, k, seed, scale)
    return WeightedUpdate(arrays=arrays, indices=indices, weight=weight)


def updates_of_a_round(fewest: int = 1, most: int = 6):
    """Some devices with sketches of all sizes and unequal weights."""
    one = st.builds(
        an_update,
        st.integers(0, 2**32),
        st.integers(1, ADAPTER.r),
        st.sampled_from([1.0, 3.0, 40.0]),
    )
    return st.lists(one, min_size=fewest, max_size=most)


def values_per_number(updates, spec: AdapterSpec = ADAPTER):
    """For each tensor, index of a number and what every device that trained it says of it."""
    found = {}
    for update in updates:
        for layer, ranks in zip(spec.layers, update.indices, strict=True):
            A, B = update.arrays[f"{layer.name}.lora_A"], update.arrays[f"{layer.name}.lora_B"]
            for column, rank in enumerate(ranks):
                for i in range(layer.d_in):
                    key = (f"{layer.name}.lora_A", (int(rank), i))
                    found.setdefault(key, []).append((update.weight, float(A[column, i])))
                for i in range(layer.d_out):
                    key = (f"{layer.name}.lora_B", (i, int(rank)))
                    found.setdefault(key, []).append((update.weight, float(B[i, column])))
        for dense in spec.dense:
            for index, value in np.ndenumerate(update.arrays[dense.name]):
                found.setdefault((dense.name, index), []).append((update.weight, float(value)))
    return found


def trained(updates, layer: int) -> np.ndarray:
    """The ranks of a layer that at least one device trained, sorted."""
    return np.unique(np.concatenate([update.indices[layer] for update in updates]))
