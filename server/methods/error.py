"""How far a round's result is from the mean of the models that its devices trained."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edge_sdk.wire.task import TaskSpec
from server.aggregation.weighted_mean import WeightedUpdate
from server.methods.method import GlobalModel, Method, Trained, global_scaling, trained

Matrix = NDArray[np.float64]


def aggregation_error(
    method: Method,
    spec: TaskSpec,
    before: GlobalModel,
    updates: Iterable[WeightedUpdate],
    after: GlobalModel,
) -> float:
    """Return ``|mean of products - what is deployed| / |mean of products|``, Frobenius norms.

    A device's product is that of its own ranks, or, where its ranks are a sketch, that of the
    whole adapter with its update on it: the sketch itself is a sample, not a model. What was in
    the base before counts on neither side.

    Args:
        method: That made ``after``.
        spec: Of the task; ``server_lr`` other than 1 shows as an error.
        before: What the devices started from.
        updates: Of the round.
        after: What was made of them.
    """
    found = list(updates)
    devices = method.weighs(spec, trained(spec, before, found))
    squared_error = squared_mean = 0.0
    for number, layer in enumerate(spec.adapter.layers):
        name = layer.name
        mean = sum(
            (
                x.share * _product(method, spec, before, x, update, number)
                for x, update in zip(devices, found, strict=True)
            ),
            np.zeros((layer.d_out, layer.d_in)),
        )
        deployed = global_scaling(spec.adapter) * _pair_product(after, name)
        if name in after.base_change:
            deployed += after.base_change[name].astype(np.float64)
            deployed -= before.base_change.get(name, np.float32(0.0))
        squared_error += float(((mean - deployed) ** 2).sum())
        squared_mean += float((mean**2).sum())
    return float(np.sqrt(squared_error / squared_mean)) if squared_mean else 0.0


def _product(
    method: Method,
    spec: TaskSpec,
    before: GlobalModel,
    device: Trained,
    update: WeightedUpdate,
    number: int,
) -> Matrix:
    """Return what one device's model adds to the frozen weight of one layer."""
    name = spec.adapter.layers[number].name
    A, B = device.arrays[f"{name}.lora_A"], device.arrays[f"{name}.lora_B"]
    if not method.is_sketch:
        return method.scaling(spec.adapter, device.k) * (B @ A)
    whole_A = before.adapter[f"{name}.lora_A"].astype(np.float64)
    whole_B = before.adapter[f"{name}.lora_B"].astype(np.float64)
    whole_A[update.indices[number]] = A
    whole_B[:, update.indices[number]] = B
    product: Matrix = global_scaling(spec.adapter) * (whole_B @ whole_A)
    return product


def _pair_product(model: GlobalModel, name: str) -> Matrix:
    A, B = model.adapter[f"{name}.lora_A"], model.adapter[f"{name}.lora_B"]
    product: Matrix = B.astype(np.float64) @ A.astype(np.float64)
    return product
