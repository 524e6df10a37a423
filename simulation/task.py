"""The task of a run, and its fleet: from what the file says and what the learner needs."""

from __future__ import annotations

from typing import Protocol

from edge_sdk.errors import ConfigError
from edge_sdk.wire.task import AdapterSpec, BaseModel, DenseSpec, LayerSpec, RoundPolicy, TaskSpec
from server.methods import method_of
from simulation.config import RunConfig
from simulation.fleet import Fleet

NAME = "simulated"


class Subject(Protocol):
    """What is trained.

    Attributes:
        base: The frozen model.
        layers: That are adapted.
        dense: Parameters that are trained whole.
    """

    base: BaseModel
    layers: list[LayerSpec]
    dense: list[DenseSpec]


def make_task(config: RunConfig, subject: Subject, fleet: Fleet) -> TaskSpec:
    """Return the task of a run.

    A method of equal ranks has the rank of its weakest device: with a larger one that device could
    not take part.

    Raises:
        ConfigError: The numbers do not go together.
    """
    told = config.adapter
    has_equal_ranks = method_of(config.method).has_equal_ranks
    r = min(told.r, int(fleet.k.min())) if has_equal_ranks else told.r
    alpha = told.lora_alpha if told.lora_alpha is not None else 2.0 * told.r
    cohort = config.cohort_size or fleet.count
    quorum = config.quorum or cohort
    training = config.training_spec()
    if training.error_feedback:
        raise ConfigError("error_feedback needs a device's own disk: it is not simulated")
    if training.update_encoding != "wire" and method_of(config.method).turns != ("AB",):
        raise ConfigError(
            f"{config.method} sends one factor, and codes are of both: take update_encoding=wire"
        )
    return TaskSpec(
        name=NAME,
        base=subject.base,
        adapter=AdapterSpec(
            r=r,
            lora_alpha=alpha * r / told.r,  # the same scaling of every rank, whatever r is
            target_modules=sorted({layer.ending for layer in subject.layers}),
            layers=subject.layers,
            use_rslora=told.use_rslora,
            dense=subject.dense,
        ),
        training=training,
        policy=RoundPolicy(
            rounds=config.rounds,
            cohort_size=cohort,
            quorum=quorum,
            min_updates=config.min_updates,
            deadline_s=config.deadline_s,
            sketch_sizes=[r] if has_equal_ranks else config.ladder(r),
            sketching=config.sketching,
        ),
        aggregation=config.aggregation_spec(),
    )
