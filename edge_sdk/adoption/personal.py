"""A device's own adapter: trained on its examples alone, and pulled towards the fleet's.

The adapter ``v`` starts as the global one ``w``. After each new version of ``w`` it takes the
local steps of one round with all ranks (k = r, so the sketch is the whole adapter and its scale
is 1), and after each step ``v <- v - local_lr * lambda * (v - w)``, see
:class:`edge_sdk.training.local_steps.Pull`. It never leaves the device.
"""

from __future__ import annotations

from edge_sdk.planning.plan import Plan
from edge_sdk.training.local_steps import Pull
from edge_sdk.training.local_trainer import LocalTrainer
from edge_sdk.wire.messages import Assignment
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import TaskSpec

STRENGTH = 10.0
"""Lambda. An AdamW step moves a number by up to ``local_lr``, so none goes further than about
``1 / STRENGTH`` from the global one, and what is no longer learned fades with a half-life of
``0.7 / (STRENGTH * local_lr)`` steps."""


def train_personal(
    trainer: LocalTrainer,
    plan: Plan,
    task: TaskSpec,
    version: int,
    own: Arrays,
    towards: Arrays,
    strength: float = STRENGTH,
) -> Arrays:
    """Return a personal adapter after the local steps of one round.

    Args:
        trainer: Holds base and examples.
        plan: For all ranks.
        task: Its training is that of a round.
        version: Of ``towards``; orders the examples.
        own: The personal adapter so far, at rank r.
        towards: The global one.
        strength: Lambda; 0 pulls nothing.

    Raises:
        OutOfMemory: The budget, or the device, has no more memory.
        LossDiverged: The loss left the finite numbers.
    """
    work = Assignment(
        task=task.name,
        round_number=version,
        adapter_version=version,
        k=task.adapter.r,
        seed=version,
        training=task.training,
        deadline_s=0.0,
    )
    pull = Pull(towards=towards, strength=strength)
    update = trainer.train(plan, work, own, pull).update
    return {name: own[name] + change for name, change in update.items()}
