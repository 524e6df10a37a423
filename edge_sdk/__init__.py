"""Fine-tune one language model across devices people own, with federated sketched LoRA."""

from importlib import import_module

_HOME = {
    "Allowance": "edge_sdk.local_plan",
    "EdgeError": "edge_sdk.errors",
    "RoundLoop": "edge_sdk.round_loop",
}
__all__ = ["Allowance", "EdgeError", "RoundLoop"]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that ``import edge_sdk`` stays cheap."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
