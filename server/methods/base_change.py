"""Low-rank products folded into the frozen weights of a base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_sdk.sketch import Indices
from edge_sdk.wire.task import TaskSpec
from server.methods.method import BaseChange, GlobalModel, global_scaling, narrowed

Stack = tuple[NDArray[np.float64], NDArray[np.float64]]
"""``(d_out, n)`` and ``(n, d_in)``, all scales within."""


def rest_of(spec: TaskSpec, model: GlobalModel, indices: Sequence[Indices]) -> BaseChange:
    """Return the product of the ranks that a device does not train, at the global scaling."""
    found: dict[str, NDArray[np.float32]] = {}
    for layer, own in zip(spec.adapter.layers, indices, strict=True):
        rest = np.setdiff1d(np.arange(spec.adapter.r), own)
        A, B = (model.adapter[f"{layer.name}.lora_{factor}"] for factor in "AB")
        found[layer.name] = narrowed(global_scaling(spec.adapter) * (B[:, rest] @ A[rest]))
    return found


def folded_in(before: BaseChange, stacks: Mapping[str, Stack]) -> BaseChange:
    """Return the change of every layer with a product added to it."""
    return {
        name: narrowed(before.get(name, np.float32(0.0)) + left @ right)
        for name, (left, right) in stacks.items()
    }
