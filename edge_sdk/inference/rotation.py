"""Cosine and sine of rotary position embeddings, as transformers computes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.model.lean_eligibility import rotation_kind, rotation_of

Table = NDArray[np.float32]


def rotation_tables(config: Mapping[str, Any], head_size: int, length: int) -> tuple[Table, Table]:
    """Return cosine and sine ``(length, head_size / 2)`` of fp32 angles."""
    positions = np.arange(length, dtype=np.float32)
    angles = positions[:, None] * _inverse_frequencies(config, head_size)
    return np.cos(angles), np.sin(angles)


def _inverse_frequencies(config: Mapping[str, Any], head_size: int) -> Table:
    rotation = rotation_of(config)
    theta = float(rotation.get("rope_theta") or config.get("rope_theta") or 10000.0)
    exponents = np.arange(0, head_size, 2).astype(np.float32) / np.float32(head_size)
    plain: Table = np.asarray(np.float32(1.0) / np.power(np.float32(theta), exponents))
    if rotation_kind(rotation) != "llama3":
        return plain
    factor = float(rotation["factor"])
    original = float(rotation["original_max_position_embeddings"])
    low, high = float(rotation["low_freq_factor"]), float(rotation["high_freq_factor"])
    wavelengths = 2 * math.pi / plain
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * plain / factor + blend * plain
    slow = np.where(wavelengths > original / low, plain / factor, plain)
    is_between = (wavelengths <= original / low) & (wavelengths >= original / high)
    return np.asarray(np.where(is_between, blended, slow), np.float32)
