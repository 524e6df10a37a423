"""What the hand-written passes must know of a Llama-shaped model, read from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edge_sdk.errors import ModelError
from edge_sdk.model_shape import ModelShape, read_shape

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_ROTATIONS = frozenset({"default", "llama3"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A Llama-shaped causal language model.

    Attributes:
        shape: Sizes and names of the linear layers.
        head_size: Width of one attention head.
        epsilon: Of every RMSNorm.
        is_tied: The output head is the embedding.
        inverse_frequencies: ``(head_size / 2,)`` of the rotary embedding, in fp64.
    """

    shape: ModelShape
    head_size: int
    epsilon: float
    is_tied: bool
    inverse_frequencies: Tensor

    def rotation(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosine and sine ``(length, head_size / 2)``.

        The angles are rounded to fp32 first where ``transformers`` does so.
        """
        angle_dtype = torch.promote_types(torch.float32, dtype)
        positions = torch.arange(length, dtype=torch.float32)
        angles = positions[:, None] * self.inverse_frequencies.to(torch.float32)
        wide = torch.float32 if dtype in (torch.bfloat16, torch.float32) else angle_dtype
        return angles.cos().to(wide), angles.sin().to(wide)


def why_not_lean(config: Mapping[str, Any], task_type: str, length: int) -> str | None:
    """Return why a model cannot be trained by the hand-written passes, or None.

    Args:
        config: The content of ``config.json``.
        task_type: ``CAUSAL_LM`` or ``SEQ_CLS``.
        length: Tokens of the longest example.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        return f"the family {family} has other blocks"
    if task_type != "CAUSAL_LM":
        return "a classifier has another head"
    if config.get("hidden_act", "silu") != "silu":
        return f"its activation is {config['hidden_act']}"
    rotation = _rotation_parameters(config)
    kind = str(rotation.get("rope_type") or rotation.get("type") or "default")
    if kind not in _ROTATIONS or config.get("partial_rotary_factor", 1.0) != 1.0:
        return f"its rotary embedding is {kind}"
    window = config.get("sliding_window")
    is_windowed = window is not None and config.get("use_sliding_window", family == "mistral")
    if is_windowed and length > int(window):
        return f"its attention reaches only {window} tokens"
    return None


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the architecture of a model for which :func:`why_not_lean` gives no reason.

    Raises:
        ModelError: A field is missing or wrong.
    """
    shape = read_shape(config)
    heads = shape.num_heads
    try:
        head_size = int(config.get("head_dim") or shape.hidden_size // heads)
        frequencies = _inverse_frequencies(_rotation_parameters(config), config, head_size)
        epsilon = float(config.get("rms_norm_eps", 1e-6))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the configuration of the base model is not usable: {error}") from error
    return Architecture(
        shape=shape,
        head_size=head_size,
        epsilon=epsilon,
        is_tied=bool(config.get("tie_word_embeddings", False)),
        inverse_frequencies=frequencies,
    )


def _rotation_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found if isinstance(found, Mapping) else {}


def _inverse_frequencies(
    rotation: Mapping[str, Any], config: Mapping[str, Any], head_size: int
) -> Tensor:
    theta = float(rotation.get("rope_theta") or config.get("rope_theta") or 10000.0)
    exponents = torch.arange(0, head_size, 2, dtype=torch.int64).to(torch.float32) / head_size
    plain = 1.0 / (theta**exponents)
    if (rotation.get("rope_type") or rotation.get("type") or "default") != "llama3":
        return plain
    factor, original = float(rotation["factor"]), float(rotation["original_max_position_embeddings"])
    low, high = float(rotation["low_freq_factor"]), float(rotation["high_freq_factor"])
    wavelengths = 2 * math.pi / plain
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * plain / factor + blend * plain
    slow = torch.where(wavelengths > original / low, plain / factor, plain)
    between = (wavelengths <= original / low) & (wavelengths >= original / high)
    return torch.where(between, blended, slow)
