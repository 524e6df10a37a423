"""The memory of a server optimizer between rounds: its layout, and safetensors bytes and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from edge_sdk.errors import StorageError
from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.task import ServerOptimizer, TaskSpec

State = dict[str, NDArray[Any]]
"""Named arrays with one row per rank, like :func:`edge_sdk.wire.rank_rows.rank_rows`.

For each tensor of the adapter, which has ``width`` numbers per rank:

* ``<tensor>.momentum``, ``(ranks, width)`` float32: mean or sum of past updates.
* ``<tensor>.root_square``, ``(ranks, width)`` float32: root of the mean of their squares; the
  squares themselves could leave float32.
* ``<tensor>.steps``, ``(ranks, 1)`` int64: rounds in which the rank was trained.
"""

KEPT: dict[ServerOptimizer, tuple[str, ...]] = {
    "average": (),
    "momentum": ("momentum",),
    "adam": ("momentum", "root_square", "steps"),
}
"""Endings of the arrays that each optimizer keeps for each tensor."""

_FLOAT, _COUNT = np.dtype("<f4"), np.dtype("<i8")
_FORMAT = {_FLOAT: "F32", _COUNT: "I64"}


def empty_state(spec: TaskSpec) -> State:
    """Return the state before the first round: zeros."""
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in _layout(spec).items()}


def encode_state(state: State) -> bytes:
    """Encode a state as safetensors bytes, the same for the same state on every machine."""
    tensors = {name: np.ascontiguousarray(array) for name, array in state.items()}
    return safetensors.numpy.save(tensors)


def decode_state(body: bytes, spec: TaskSpec) -> State:
    """Decode the state of a task's server optimizer.

    Args:
        body: What :func:`encode_state` returned.
        spec: Of the task: which arrays there must be, of which shape.

    Returns:
        Arrays that callers do not change.

    Raises:
        StorageError: Not safetensors, other names, shapes or number formats, or numbers that no
            optimizer leaves behind.
    """
    try:
        tensors = dict(safetensors.deserialize(body))  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError) as error:
        raise _damaged(f"it is no safetensors file ({error})") from error
    layout = _layout(spec)
    if tensors.keys() != layout.keys():
        odd = sorted(tensors.keys() ^ layout.keys())
        raise _damaged(f"it has {len(tensors)} arrays, not {len(layout)}, such as {odd[0]!r}")
    state: State = {}
    for name, (shape, dtype) in layout.items():
        tensor = tensors.pop(name)
        if tuple(tensor["shape"]) != shape or tensor["dtype"] != _FORMAT[dtype]:
            raise _damaged(
                f"{name} is {tensor['dtype']} {tuple(tensor['shape'])}, "
                f"not {_FORMAT[dtype]} {shape}"
            )
        array = np.frombuffer(tensor["data"], dtype).reshape(shape)
        if not np.isfinite(array).all() or (not name.endswith(".momentum") and array.min() < 0):
            raise _damaged(f"{name} holds NaN, infinity, or a negative count or root")
        state[name] = array
    return state


def _layout(spec: TaskSpec) -> dict[str, tuple[tuple[int, int], np.dtype[Any]]]:
    """Return name, shape and number format of every array of a task's state."""
    adapter = spec.adapter
    dense = {one.name for one in adapter.dense}
    layout: dict[str, tuple[tuple[int, int], np.dtype[Any]]] = {}
    for name, shape in adapter_shapes(adapter, 1).items():
        ranks = 1 if name in dense else adapter.r
        for ending in KEPT[spec.aggregation.server_optimizer]:
            is_count = ending == "steps"
            width = 1 if is_count else math.prod(shape)
            layout[f"{name}.{ending}"] = ((ranks, width), _COUNT if is_count else _FLOAT)
    return layout


def _damaged(how: str) -> StorageError:
    return StorageError(
        f"the stored state of the server optimizer is damaged: {how}; restore it from a backup"
    )
