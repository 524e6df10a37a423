"""Which models the hand-written passes compute: decided from a configuration, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_sdk.wire.task import TaskType

_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_ROTATIONS = frozenset({"default", "llama3"})


def why_not_lean(config: Mapping[str, Any], task_type: TaskType) -> str | None:
    """Return why a model cannot be trained by the hand-written passes, or None.

    Args:
        config: The content of ``config.json``.
        task_type: What the model is used for.
    """
    family = config.get("model_type")
    if family not in _FAMILIES:
        return f"the blocks of a {family} model are others"
    if task_type != "CAUSAL_LM":
        return "the head of a classifier is another"
    if config.get("hidden_act", "silu") != "silu":
        return f"its activation is {config['hidden_act']}"
    rotation = rotation_of(config)
    if rotation_kind(rotation) not in _ROTATIONS or config.get("partial_rotary_factor", 1) != 1:
        return f"its rotary embedding is {rotation_kind(rotation)}"
    window = config.get("sliding_window") or 0
    if config.get("use_sliding_window", family == "mistral") and window:
        return f"its attention reaches only {window} tokens"
    return None


def rotation_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of the rotary embedding; empty where it is the plain one."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found if isinstance(found, Mapping) else {}


def rotation_kind(rotation: Mapping[str, Any]) -> str:
    """Return the name of a rotary embedding."""
    return str(rotation.get("rope_type") or rotation.get("type") or "default")
