"""HetLoRA: each device trains the first ranks; the padded mean weighs by what they came to.

All ranks have the scaling of the global adapter on every device, so that a rank means the same
everywhere. The self-pruning of ranks that the paper also has is left out: here the rank of a device
is what it can afford.

Source:
    arXiv:2401.06432, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import TaskSpec
from server.aggregation.weighted_mean import WeightedUpdate
from server.methods.method import GlobalModel, Trained, dense_means, narrowed, trained


def weigh_norms(spec: TaskSpec, devices: Sequence[Trained]) -> Sequence[Trained]:
    """Share the mean out by the Frobenius norm of each device's ``BA``: sparsity-weighted."""
    norms = np.array([_norm(spec, device) for device in devices])
    if not norms.any():
        return devices
    shares = norms / norms.sum()
    return [replace(x, share=float(s)) for x, s in zip(devices, shares, strict=True)]


def average_padded(
    spec: TaskSpec,
    model: GlobalModel,
    updates: Iterable[WeightedUpdate],
    rng: np.random.Generator,
) -> GlobalModel:
    """Average what the devices ended with, a rank that one does not have as zero."""
    devices = weigh_norms(spec, trained(spec, model, updates))
    adapter: Arrays = {}
    for layer in spec.adapter.layers:
        adapter |= _padded_mean(layer.name, spec.adapter.r, devices)
    return replace(model, adapter=adapter | dense_means(spec, devices))


def _padded_mean(layer: str, r: int, devices: Sequence[Trained]) -> Arrays:
    A, B = f"{layer}.lora_A", f"{layer}.lora_B"
    mean_A = np.zeros((r, devices[0].arrays[A].shape[1]))
    mean_B = np.zeros((devices[0].arrays[B].shape[0], r))
    for device in devices:
        mean_A[: device.k] += device.share * device.arrays[A]
        mean_B[:, : device.k] += device.share * device.arrays[B]
    return {A: narrowed(mean_A), B: narrowed(mean_B)}


def _norm(spec: TaskSpec, device: Trained) -> float:
    """Return the Frobenius norm of ``BA`` over all layers, from k-by-k matrices alone."""
    squared = 0.0
    for layer in spec.adapter.layers:
        A, B = device.arrays[f"{layer.name}.lora_A"], device.arrays[f"{layer.name}.lora_B"]
        squared += float(((B.T @ B) * (A @ A.T)).sum())
    return float(np.sqrt(max(squared, 0.0)))
