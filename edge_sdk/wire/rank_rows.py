"""The tensors of an adapter seen with one row per rank, as sums and codes want them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.wire.task import AdapterSpec

RowShapes = dict[str, tuple[int, int]]
Number = TypeVar("Number", bound=np.generic)


def row_shapes(adapter: AdapterSpec, k: int) -> RowShapes:
    """Return the shape of every tensor at rank ``k`` as :func:`rank_rows` views it.

    Returns:
        In the order of ``adapter_shapes``: ``(k, d_in)``, ``(k, d_out)``, and ``(1, size)`` of a
        dense parameter.
    """
    shapes: RowShapes = {}
    for layer in adapter.layers:
        shapes[f"{layer.name}.lora_A"] = (k, layer.d_in)
        shapes[f"{layer.name}.lora_B"] = (k, layer.d_out)
    return shapes | {dense.name: (1, math.prod(dense.shape)) for dense in adapter.dense}


def each_rank_rows(
    arrays: Mapping[str, NDArray[Number]], adapter: AdapterSpec
) -> Iterator[tuple[str, NDArray[Number]]]:
    """Yield what :func:`rank_rows` returns, one tensor at a time."""
    for layer in adapter.layers:
        A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        yield A, arrays[A]
        yield B, arrays[B].T
    for dense in adapter.dense:
        yield dense.name, arrays[dense.name].reshape(1, -1)


def rank_rows(
    arrays: Mapping[str, NDArray[Number]], adapter: AdapterSpec
) -> dict[str, NDArray[Number]]:
    """View every tensor with one row per rank: A, B transposed, a dense parameter as one row.

    Args:
        arrays: Every tensor of ``adapter_shapes(adapter, k)`` for any k, the dense ones
            C-contiguous.
        adapter: Names of the layers.

    Returns:
        Views in the order of ``adapter_shapes``; ``(k, d_in)``, ``(k, d_out)`` or ``(1, size)``.
    """
    return dict(each_rank_rows(arrays, adapter))


def from_rank_rows(
    rows: Mapping[str, NDArray[Number]], adapter: AdapterSpec
) -> dict[str, NDArray[Number]]:
    """View what :func:`rank_rows` returned as the tensors it came from."""
    arrays: dict[str, NDArray[Number]] = {}
    for layer in adapter.layers:
        A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        arrays[A], arrays[B] = rows[A], rows[B].T
    for dense in adapter.dense:
        arrays[dense.name] = rows[dense.name].reshape(dense.shape)
    return arrays
