"""Which examples of a device are kept from training, to judge adapters by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from edge_sdk.errors import ConfigError
from edge_sdk.text.example import Example

SHARE = 0.1
"""Share of the examples that is held out, if the owner does not say another."""

FEWEST = 8
"""Held-out examples below which nothing can be judged; then all are trained on."""

MOST_SCORED = 256
"""Held-out examples that versions are judged by, at most: it bounds the time that takes."""


def held_out(examples: Sequence[Example], share: float = SHARE) -> list[bool]:
    """Say for each example whether it is held out.

    An example's own digest decides, so the answer does not depend on the other examples or their
    order: it stays when data is appended, and copies of one example are on the same side.

    Args:
        examples: All of this device, tokenized as the task says.
        share: Of them, about how many; 0 holds out none.

    Returns:
        All False if fewer than ``FEWEST`` would be held out.

    Raises:
        ConfigError: A share that is none, or would leave nothing to train on.
    """
    if not 0 <= share <= 0.5:
        raise ConfigError(f"held_out_share={share} must be in 0..0.5, the rest is trained on")
    chosen = [_drawn(example) < share for example in examples]
    if sum(chosen) < FEWEST or all(chosen):
        return [False] * len(examples)
    return chosen


def _drawn(example: Example) -> float:
    """Return a number in 0..1 that is the same for the same example, and spread evenly."""
    found = hashlib.sha256(np.asarray(example.tokens, "<i4").tobytes())
    found.update(np.packbits(example.is_learned).tobytes())
    found.update(str(example.label).encode())
    return int.from_bytes(found.digest()[:8], "big") / 2**64
