"""What a method costs a device: bytes both ways and the memory of its adapter."""

from __future__ import annotations

from edge_sdk.sketch import Factors
from edge_sdk.wire.payload import dense_bytes, number_bytes
from edge_sdk.wire.task import AdapterSpec, TaskSpec
from server.methods.method import GlobalModel, Method

_NUMBER_BYTES = 4
_ADAM_COPIES = 4  # value, gradient and two moments


def downlink_bytes(method: Method, spec: TaskSpec, model: GlobalModel, k: int) -> int:
    """Return the bytes of the tensors that a device fetches before a round.

    What the last round folded into the base comes as two factors, or whole where that is less.
    """
    adapter = spec.adapter
    item = number_bytes(adapter.wire_dtype)
    fetched = adapter.r if method.freezes_rest else k
    own = factor_numbers(adapter, method.fetched, fetched) * item + dense_bytes(adapter)
    rank = model.change_rank
    change = sum(
        min(rank * (layer.d_in + layer.d_out), layer.d_in * layer.d_out) for layer in adapter.layers
    )
    return own + item * change


def adapter_memory_bytes(method: Method, spec: TaskSpec, k: int, round_number: int) -> int:
    """Return what values, gradients and Adam's moments of the adapter take on a device, fp32."""
    adapter = spec.adapter
    live = factor_numbers(adapter, method.factors(round_number), k)
    values = factor_numbers(adapter, "AB", adapter.r if method.freezes_rest else k)
    return _NUMBER_BYTES * (values + (_ADAM_COPIES - 1) * live)


def factor_numbers(adapter: AdapterSpec, factors: Factors, k: int) -> int:
    """Return how many numbers k ranks of some factors have."""
    widths = {
        "A": sum(layer.d_in for layer in adapter.layers),
        "B": sum(layer.d_out for layer in adapter.layers),
    }
    return k * sum(widths[factor] for factor in factors)
