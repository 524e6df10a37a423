"""FlexLoRA: the mean of the devices' products, cut back to the adapter's rank by an SVD.

Each device gets the leading ranks it can afford. The root of every singular value goes into both
factors, so that neither is much larger than the other. A rank that the products did not need keeps
its row of A beside a zero column of B: with both at zero it could never learn again.

Source:
    arXiv:2402.11505, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import TaskSpec
from server.aggregation.weighted_mean import WeightedUpdate
from server.methods.method import GlobalModel, Trained, dense_means, narrowed, trained

_NONE = 1e-12  # a singular value below this share of the largest is rounding


def decompose_mean(
    spec: TaskSpec,
    model: GlobalModel,
    updates: Iterable[WeightedUpdate],
    rng: np.random.Generator,
) -> GlobalModel:
    """Decompose the mean product of every layer."""
    devices = trained(spec, model, updates)
    adapter: Arrays = {}
    for layer in spec.adapter.layers:
        adapter |= _decomposed(layer.name, model.adapter, devices)
    return replace(model, adapter=adapter | dense_means(spec, devices))


def _decomposed(layer: str, before: Arrays, devices: Sequence[Trained]) -> Arrays:
    A, B = f"{layer}.lora_A", f"{layer}.lora_B"
    left = np.concatenate([x.share * x.arrays[B] for x in devices], axis=1)
    right = np.concatenate([x.arrays[A] for x in devices], axis=0)
    U, values, V = thin_svd(left, right)
    new_A, new_B = before[A].astype(np.float64), np.zeros(before[B].shape)
    count = min(len(new_A), int((values > _NONE * values.max(initial=0.0)).sum()))
    roots = np.sqrt(values[:count])
    new_A[:count] = roots[:, None] * V[:count]
    new_B[:, :count] = U[:, :count] * roots
    return {A: narrowed(new_A), B: narrowed(new_B)}


def thin_svd(
    left: NDArray[np.float64], right: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Decompose ``left @ right`` without ever forming it.

    Args:
        left: ``(d_out, n)``.
        right: ``(n, d_in)``.

    Returns:
        ``U (d_out, m)``, the singular values ``(m,)`` from the largest, ``V (m, d_in)``.
    """
    Q_left, R_left = np.linalg.qr(left)
    Q_right, R_right = np.linalg.qr(right.T)
    U, values, V = np.linalg.svd(R_left @ R_right.T, full_matrices=False)
    return Q_left @ U, values, V @ Q_right.T
