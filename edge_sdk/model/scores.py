"""How well a model predicts one example."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model predicts one example.

    Attributes:
        loss: Mean over the learned tokens; of a classifier, over the one label.
        is_right: Whether its most probable class is the label; None unless it is a classifier.
    """

    loss: float
    is_right: bool | None = None
