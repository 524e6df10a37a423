"""One device's part in a task: its plan, what carries it out, and how it turns out."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from statistics import median

from edge_sdk.errors import NotFeasible, OutOfMemory
from edge_sdk.planning.cost import Workload
from edge_sdk.planning.local_plan import LocalPlanner
from edge_sdk.planning.plan import Plan, make_plan, smaller_plan
from edge_sdk.training.local_steps import LocalResult
from edge_sdk.training.local_trainer import LocalTrainer, describe
from edge_sdk.wire.messages import Assignment, CheckIn
from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.task import TaskSpec

log = logging.getLogger("edge_sdk")


class Participation:
    """A device in a task.

    Args:
        task: What is trained.
        planner: Of this device.
        trainer: Carries the plan out.
        work: What the plan is for.
        plan: The first one; memory may force smaller ones.
    """

    def __init__(
        self,
        task: TaskSpec,
        planner: LocalPlanner,
        trainer: LocalTrainer,
        work: Workload,
        plan: Plan,
    ) -> None:
        self.task = task
        self.trainer = trainer
        self.plan = plan
        self._planner = planner
        self._work = work
        self._is_first_plan = True

    def check_in(self) -> CheckIn:
        """Return what this device tells the server now."""
        return CheckIn(
            base_digest=self.task.base.digest,
            affordable_k=self.plan.k,
            examples=len(self.trainer.examples),
        )

    def step_down(self, error: OutOfMemory) -> None:
        """Plan again with less memory after it ran out.

        Raises:
            NotFeasible: There is no smaller plan.
        """
        self.plan = smaller_plan(self._work, self._planner.machine(), self.plan)
        self._is_first_plan = False
        log.warning("%s; going on with less: %s", error, describe(self.plan))

    def personal_plan(self) -> Plan:
        """Plan training all ranks for this device alone: bytes and the round's end do not count.

        Raises:
            NotFeasible: All ranks do not fit, or only with examples cut or targets left out.
        """
        adapter, execution = self.task.adapter, self.plan.execution
        work = replace(
            self._work,
            sketch_sizes=(adapter.r,),
            quantizations=(execution.quantization,),  # the base is held in it
            length=execution.length,
            wire_bytes=0,
            update_encoding="wire",
        )
        held = sum(math.prod(shape) for shape in adapter_shapes(adapter, adapter.r).values())
        budget = replace(
            self.plan.budget,
            memory_bytes=max(0, self.plan.budget.memory_bytes - 4 * held),  # what pulls, in fp32
            round_s=None,
        )
        plan = make_plan(work, self._planner.machine(), budget)
        endings = {layer.ending for layer in work.layers}
        if plan.execution.length < work.length or set(plan.execution.trained_targets) < endings:
            raise NotFeasible(f"all {adapter.r} ranks fit only with {', '.join(plan.concessions)}")
        return replace(plan, budget=self.plan.budget)

    def learn(self, work: Assignment, result: LocalResult, peak_bytes: int) -> None:
        """Correct the next prediction, if the plan was carried out as it was made.

        After a step down the peak is that of the larger plan, and a device that was restarted
        may still have a smaller assignment.
        """
        if self._is_first_plan and work.k == self.plan.k:
            step_s = median(result.step_s)
            self._planner.learn(self.plan, self._work, result.longest, peak_bytes, step_s)
