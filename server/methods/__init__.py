"""Federated LoRA methods behind one interface; the rules of each are a small pure module."""

from __future__ import annotations

from edge_sdk.errors import ConfigError
from server.methods.fedex_lora import fold_residual
from server.methods.flexlora import decompose_mean
from server.methods.flora import fold_stack
from server.methods.hetlora import average_padded, weigh_norms
from server.methods.method import Method, first_ranks, global_scaling, sketch_scaling
from server.methods.sketched import move_by_mean, sketch

METHODS: dict[str, Method] = {
    "fslora": Method(draw=sketch, scaling=sketch_scaling, fold=move_by_mean, is_sketch=True),
    "fslora-whole": Method(
        draw=sketch, scaling=global_scaling, fold=move_by_mean, freezes_rest=True, is_sketch=True
    ),
    # B first: while it is zero, A has no gradient
    "fslora-alternating": Method(
        draw=sketch, scaling=sketch_scaling, fold=move_by_mean, turns=("B", "A"), is_sketch=True
    ),
    "fedit": Method(
        draw=first_ranks, scaling=global_scaling, fold=move_by_mean, has_equal_ranks=True
    ),
    "ffa-lora": Method(
        draw=first_ranks,
        scaling=global_scaling,
        fold=move_by_mean,
        turns=("B",),
        fetched="B",  # A is that of the start, which the task's seed draws
        has_equal_ranks=True,
    ),
    "rolora": Method(
        draw=first_ranks,
        scaling=global_scaling,
        fold=move_by_mean,
        turns=("B", "A"),
        has_equal_ranks=True,
    ),
    "hetlora": Method(
        draw=first_ranks, scaling=global_scaling, fold=average_padded, weighs=weigh_norms
    ),
    "flexlora": Method(draw=first_ranks, scaling=global_scaling, fold=decompose_mean),
    "flora": Method(
        draw=first_ranks,
        scaling=sketch_scaling,
        fold=fold_stack,
        fetched="A",  # drawn afresh for every round, beside a B of zeros
    ),
    "fedex-lora": Method(
        draw=first_ranks, scaling=global_scaling, fold=fold_residual, has_equal_ranks=True
    ),
}


def method_of(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(f"method {name!r} is none of {', '.join(METHODS)}")
    return METHODS[name]
