"""Which layers the graph computes as one: those of a decoder's block that share their input."""

from __future__ import annotations

from edge_sdk.model.model_shape import ModelShape
from edge_sdk.wire.task import LayerSpec

_JOINED = {
    "self_attn.q_proj": "self_attn.qkv_proj",
    "self_attn.k_proj": "self_attn.qkv_proj",
    "self_attn.v_proj": "self_attn.qkv_proj",
    "mlp.gate_proj": "mlp.gate_up_proj",
    "mlp.up_proj": "mlp.gate_up_proj",
}


def slot_groups(shape: ModelShape) -> dict[str, list[LayerSpec]]:
    """Return the layers of every adapter slot in the order of their outputs, by slot name."""
    groups: dict[str, list[LayerSpec]] = {}
    for layer in shape.linears:
        groups.setdefault(_slot(layer.name), []).append(layer)
    return groups


def _slot(name: str) -> str:
    for own, joined in _JOINED.items():
        if name.endswith(f".{own}"):
            return name.removesuffix(own) + joined
    return name
