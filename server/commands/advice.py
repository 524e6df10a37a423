"""Guard rails: what the study found unwise in a task, said before any device trains.

A task is created all the same: the study's fleets are not everybody's. See ``docs/choosing.md``.
"""

from __future__ import annotations

from edge_sdk.sketch import sketched_scaling
from edge_sdk.wire.task import TaskSpec

MAX_REACH = 0.5
"""Step reach that was best for sketches in the study; at 1 and 2 they learned far less.

See :func:`step_reach`.
"""

LEAST_COVERAGE = 1.0
"""Devices that train a rank in a round, on average, below which many ranks are left alone."""


def step_reach(spec: TaskSpec) -> float:
    """Return how far the smallest sketch may move its layers in a round: ``scale * H * lr``.

    AdamW moves a number by about ``local_lr`` in a step, whatever the gradient; the forward
    multiplies it with ``lora_scaling * r / k`` (``alpha / k`` with plain scaling). So the reach
    grows as the smallest sketch shrinks, which is why it bounds the step size of the whole task.
    """
    adapter, training = spec.adapter, spec.training
    k = min(spec.policy.sketch_sizes)
    scale = sketched_scaling(adapter.lora_alpha, adapter.r, k, adapter.use_rslora)
    return scale * training.local_steps * training.local_lr


def coverage(spec: TaskSpec) -> float:
    """Return how many devices of a cohort train a rank, if all had the smallest sketch."""
    return spec.policy.cohort_size * min(spec.policy.sketch_sizes) / spec.adapter.r


def advice(spec: TaskSpec) -> list[str]:
    """Return a sentence for everything that the study found unwise; mostly there is nothing."""
    said = []
    training, adapter = spec.training, spec.adapter
    k = min(spec.policy.sketch_sizes)
    reach = step_reach(spec)
    if training.optimizer == "adamw" and reach > MAX_REACH:
        said.append(
            f"large steps for sketches of {k}: scale x local_steps x local_lr is {reach:.2g}, "
            f"and more than {MAX_REACH:g} did harm; take --local-lr "
            f"{training.local_lr * MAX_REACH / reach:.2g} or --alpha "
            f"{adapter.lora_alpha * MAX_REACH / reach:.2g}, or leave out the smallest sketches"
        )
    is_fleet = spec.policy.cohort_size > 1  # one device alone is a trial: nobody to share with
    if is_fleet and coverage(spec) < LEAST_COVERAGE:
        said.append(
            f"a rank may wait long: {spec.policy.cohort_size} devices that train {k} of "
            f"{adapter.r} ranks leave most of them alone in a round; if most devices are that "
            f"small, take --rank {max(k, spec.policy.cohort_size * k)} or a larger cohort"
        )
    return said
