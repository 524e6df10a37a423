"""FedEx-LoRA: means of A and of B, and what their product lacks goes into the base.

Source:
    arXiv:2410.09432, equations 5 to 8.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import TaskSpec
from server.aggregation.weighted_mean import WeightedUpdate
from server.methods.base_change import Stack, folded_in
from server.methods.method import GlobalModel, dense_means, global_scaling, narrowed, trained


def fold_residual(
    spec: TaskSpec,
    model: GlobalModel,
    updates: Iterable[WeightedUpdate],
    rng: np.random.Generator,
) -> GlobalModel:
    """Average both factors; ``scaling * (sum p BA - (sum p B)(sum p A))`` goes into the base."""
    devices = trained(spec, model, updates)
    adapter: Arrays = {}
    stacks: dict[str, Stack] = {}
    for layer in spec.adapter.layers:
        A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        for name in (A, B):
            adapter[name] = narrowed(sum(x.share * x.arrays[name] for x in devices))
        rows = [x.share * x.arrays[A] for x in devices] + [-adapter[A].astype(np.float64)]
        columns = [x.arrays[B] for x in devices] + [adapter[B].astype(np.float64)]
        scaled = global_scaling(spec.adapter) * np.concatenate(rows)
        stacks[layer.name] = np.concatenate(columns, axis=1), scaled
    return GlobalModel(
        adapter=adapter | dense_means(spec, devices),
        base_change=folded_in(model.base_change, stacks),
        change_rank=sum(device.k for device in devices) + spec.adapter.r,
    )
