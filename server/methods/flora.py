"""FLoRA: the devices' adapters are stacked and folded into the base, and all start afresh.

Source:
    arXiv:2409.05976, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edge_sdk.wire.task import TaskSpec
from server.aggregation.weighted_mean import WeightedUpdate, initial_adapter
from server.methods.base_change import Stack, folded_in
from server.methods.method import GlobalModel, dense_means, sketch_scaling, trained


def fold_stack(
    spec: TaskSpec,
    model: GlobalModel,
    updates: Iterable[WeightedUpdate],
    rng: np.random.Generator,
) -> GlobalModel:
    """Stack ``B`` beside ``B`` and ``p * scaling * A`` under ``A``: the exact mean of products.

    Each block keeps the scaling of its own rank, ``alpha / k``. The stack grows with the cohort,
    and every device must fetch it. The next adapter is drawn as the first one was.
    """
    devices = trained(spec, model, updates)
    stacks: dict[str, Stack] = {}
    for layer in spec.adapter.layers:
        A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        rows = [x.share * sketch_scaling(spec.adapter, x.k) * x.arrays[A] for x in devices]
        columns = [x.arrays[B] for x in devices]
        stacks[layer.name] = np.concatenate(columns, axis=1), np.concatenate(rows)
    return GlobalModel(
        adapter=initial_adapter(spec.adapter, rng) | dense_means(spec, devices),
        base_change=folded_in(model.base_change, stacks),
        change_rank=sum(device.k for device in devices),
    )
