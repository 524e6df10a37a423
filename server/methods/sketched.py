"""FSLoRA: each device trains a random sketch of the ranks, and the mean update moves them.

With A and B trained in turn the mean of the devices' products is the product of their means,
exactly. At full rank the same rule is FedIT; with B alone, FFA-LoRA; with B and A in turn, RoLoRA.

Source:
    FSLoRA, arXiv:2501.19389; FedIT, arXiv:2305.05644; FFA-LoRA, arXiv:2403.12313; RoLoRA,
    arXiv:2502.01755.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from edge_sdk.sketch import Indices, draw_sketch
from edge_sdk.wire.task import TaskSpec
from server.aggregation.combining import combine
from server.aggregation.server_optimizers import step
from server.aggregation.weighted_mean import WeightedUpdate
from server.methods.method import GlobalModel, Turn
from server.rules.balanced import balanced_sketch, balanced_spread


def sketch(spec: TaskSpec, k: int, turn: Turn) -> list[Indices]:
    """Draw ranks as the task's ``sketching`` says; see :func:`edge_sdk.sketch.draw_sketch`."""
    r, layers = spec.adapter.r, len(spec.adapter.layers)
    if turn.drawn_from is None:
        return draw_sketch(turn.seed, r, k, layers)
    spread = balanced_spread(r, spec.policy.sketch_sizes)
    return balanced_sketch(turn.task_seed, r, spread, layers, turn.drawn_from, k)


def move_by_mean(
    spec: TaskSpec,
    model: GlobalModel,
    updates: Iterable[WeightedUpdate],
    rng: np.random.Generator | None = None,
) -> GlobalModel:
    """Move the adapter by the mean update: ``X <- X + server_lr * sum p scatter(update)``.

    Memory does not grow with the number of updates; nothing random is needed.
    """
    adapter, state = step(model.adapter, combine(spec, updates), spec, model.state)
    return replace(model, adapter=adapter, state=state)
