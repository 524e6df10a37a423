"""Inference with ONNX Runtime: one exported base, adapters swapped while it is open, no torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_sdk.inference.sampling import Sampling
    from edge_sdk.inference.session import Session, open_session

_HOME = {
    "Sampling": "edge_sdk.inference.sampling",
    "Session": "edge_sdk.inference.session",
    "open_session": "edge_sdk.inference.session",
}
__all__ = ["Sampling", "Session", "open_session"]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that importing the package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
