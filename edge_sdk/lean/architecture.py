"""What the hand-written passes must know of a Llama-shaped model, read from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edge_sdk.errors import ModelError
from edge_sdk.model.lean_eligibility import rotation_kind, rotation_of
from edge_sdk.model.model_shape import ModelShape, read_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A Llama-shaped causal language model.

    Attributes:
        shape: Sizes and names of the linear layers.
        head_size: Width of one attention head.
        epsilon: Of every RMSNorm.
        is_tied: The output head is the embedding.
        inverse_frequencies: ``(head_size / 2,)`` of the rotary embedding, in fp32.
    """

    shape: ModelShape
    head_size: int
    epsilon: float
    is_tied: bool
    inverse_frequencies: Tensor

    def rotation(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosine and sine ``(length, head_size / 2)``; like transformers, of fp32 angles."""
        wide = torch.promote_types(torch.float32, dtype)
        positions = torch.arange(length, dtype=torch.float32)
        angles = positions[:, None] * self.inverse_frequencies.to(torch.float32)
        return angles.cos().to(wide), angles.sin().to(wide)


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the architecture of a model for which ``why_not_lean`` gives no reason.

    Raises:
        ModelError: A field is missing or wrong.
    """
    shape = read_shape(config)
    heads = shape.num_heads
    try:
        head_size = int(config.get("head_dim") or shape.hidden_size // heads)
        frequencies = _inverse_frequencies(rotation_of(config), config, head_size)
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


def _inverse_frequencies(
    rotation: Mapping[str, Any], config: Mapping[str, Any], head_size: int
) -> Tensor:
    theta = float(rotation.get("rope_theta") or config.get("rope_theta") or 10000.0)
    exponents = torch.arange(0, head_size, 2, dtype=torch.int64).to(torch.float32) / head_size
    plain = 1.0 / (theta**exponents)
    if rotation_kind(rotation) != "llama3":
        return plain
    factor, original = (
        float(rotation["factor"]),
        float(rotation["original_max_position_embeddings"]),
    )
    low, high = float(rotation["low_freq_factor"]), float(rotation["high_freq_factor"])
    wavelengths = 2 * math.pi / plain
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * plain / factor + blend * plain
    slow = torch.where(wavelengths > original / low, plain / factor, plain)
    between = (wavelengths <= original / low) & (wavelengths >= original / high)
    return torch.where(between, blended, slow)
