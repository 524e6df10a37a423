"""Fine-tune one language model across devices people own, with federated sketched LoRA."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_sdk.agent.policy import Policy
    from edge_sdk.agent.status import Status
    from edge_sdk.agent.supervisor import Event
    from edge_sdk.client import EdgeClient
    from edge_sdk.errors import EdgeError
    from edge_sdk.planning.allowance import Allowance
    from edge_sdk.rounds.round_loop import RoundLoop

_HOME = {
    "Allowance": "edge_sdk.planning.allowance",
    "EdgeClient": "edge_sdk.client",
    "EdgeError": "edge_sdk.errors",
    "Event": "edge_sdk.agent.supervisor",
    "Policy": "edge_sdk.agent.policy",
    "RoundLoop": "edge_sdk.rounds.round_loop",
    "Status": "edge_sdk.agent.status",
}
__all__ = ["Allowance", "EdgeClient", "EdgeError", "Event", "Policy", "RoundLoop", "Status"]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that ``import edge_sdk`` stays cheap."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
