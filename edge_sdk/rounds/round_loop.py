"""The device's side of a task: plan, check in, fetch, train, submit, round after round."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.device import peak_rss_bytes
from edge_sdk.errors import (
    ConfigError,
    DataError,
    LossDiverged,
    MalformedPayload,
    NotAssigned,
    NotFinite,
    NotFound,
    OutOfMemory,
    RoundClosed,
    TooLarge,
    UpdateConflict,
)
from edge_sdk.model.model_folder import config_digest, read_model_shape
from edge_sdk.network.link import save_link
from edge_sdk.planning.allowance import Allowance
from edge_sdk.planning.cost import Workload
from edge_sdk.planning.local_plan import LocalPlanner
from edge_sdk.planning.plan import Plan
from edge_sdk.rounds.deadline import Deadline
from edge_sdk.rounds.error_feedback import ErrorFeedback, read_ranks
from edge_sdk.rounds.journal import Journal, KeptUpdate, work_id
from edge_sdk.rounds.membership import Membership
from edge_sdk.sketch import Indices
from edge_sdk.text.held_out import SHARE as HELD_OUT_SHARE
from edge_sdk.training.progress import Steps
from edge_sdk.wire.messages import (
    Assignment,
    CheckInReply,
    EvaluationReport,
    UpdateReport,
    encode_message,
)
from edge_sdk.wire.payload import (
    Arrays,
    adapter_shapes,
    decode,
    dense_bytes,
    digest,
    number_bytes,
)
from edge_sdk.wire.task import TaskSpec
from edge_sdk.wire.update_body import encode_update

if TYPE_CHECKING:
    from edge_sdk.adoption.adoption import Adoption
    from edge_sdk.training.local_steps import LocalResult
    from edge_sdk.training.local_trainer import LocalTrainer
    from edge_sdk.training.participation import Participation

log = logging.getLogger("edge_sdk")

_NOT_COUNTED = (RoundClosed, UpdateConflict, NotAssigned, NotFound)
_USELESS = (MalformedPayload, NotFinite, TooLarge)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """One round this device took part in.

    Attributes:
        round_number: From 1.
        k: Ranks trained.
        loss: Mean training loss over the local steps.
        update_bytes: Body of the update.
        upload_bytes: Bodies sent in this round.
        download_bytes: Bodies received in this round.
        dense_bytes: The part of a slice that is a classifier's head and does not follow k.
        training_s: Wall time of the local steps.
        planned_bytes: Peak memory the plan predicted.
        peak_rss_bytes: Peak memory of this process so far.
        counted: Whether the update came in time.
    """

    round_number: int
    k: int
    loss: float
    update_bytes: int
    upload_bytes: int
    download_bytes: int
    dense_bytes: int
    training_s: float
    planned_bytes: int
    peak_rss_bytes: int
    counted: bool


class _GivenUp(Exception):
    """What is left of a round takes longer than the round does."""

    def __init__(self, message: str, left_s: float) -> None:
        super().__init__(message)
        self.left_s = left_s


class RoundLoop:
    """Take part in a federated task with data that stays on this device.

    Nothing is read, loaded or sent before :meth:`plan` or :meth:`rounds` is called.

    Args:
        server: Base address; None uses the server this device joined before.
        data: JSONL file with the private training examples; needed by :meth:`rounds`.
        task: Name of the task; None takes the server's only one.
        model: Folder or hub id of the base model; None uses the name the task gives.
        enrolment_token: From the operator; needed once.
        name: Of this device, for people; None takes the host name.
        state_folder: Where the identity is kept; None takes the platform's folder.
        allowance: What a round may take from this device. While it trains, this process is
            held to the memory of its plan.
        gate: Keep the adapter in use in the state folder. A new version takes its place unless it
            loses on examples that are held out from training; the server is told how it did.
        personal: The same, and train an adapter of this device's own, which never leaves it and
            is used unless it loses.
        held_out_share: Of the examples, about how many the gate holds out; with 0 it tries nothing.
        outage_patience_s: How long to wait for an unreachable server before giving up.
        on_phase: Called with what begins, ``waiting``, ``fetching``, ``training`` (also after each
            step), ``sending`` or ``retrying`` (with the ``trouble``), and the facts of
            :class:`edge_sdk.agent.status.Status` it changes.
    """

    def __init__(
        self,
        *,
        data: str | Path | None = None,
        server: str | None = None,
        task: str | None = None,
        model: str | None = None,
        enrolment_token: str | None = None,
        name: str | None = None,
        state_folder: str | Path | None = None,
        allowance: Allowance | None = None,
        gate: bool = False,
        personal: bool = False,
        held_out_share: float = HELD_OUT_SHARE,
        outage_patience_s: float = 600.0,
        on_phase: Callable[..., None] | None = None,
    ) -> None:
        self._data = Path(data) if data is not None else None
        self._allowance = allowance or Allowance()
        self.membership = Membership(
            server=server,
            task=task,
            model=model,
            enrolment_token=enrolment_token,
            name=name,
            state_folder=state_folder,
            allowance=self._allowance,
            outage_patience_s=outage_patience_s,
            on_outage=self._await_server,
        )
        self._is_adopting = gate or personal
        self._is_personal = personal
        self._held_out_share = held_out_share if self._is_adopting else 0.0
        self._on_phase = on_phase
        self._given_up_on = 0
        self._ranks: list[Indices] = []

    def plan(self) -> Plan:
        """Decide what this device can afford now, for examples as long as the task allows.

        Raises:
            NotFeasible: Nothing fits the budget.
            WrongBaseModel: The local base model is not the one the task pins.
        """
        task = self.membership.task
        length = task.training.max_length
        work = self._workload(task, length, learned=length, examples=task.training.batch_size)
        return self._planner(task).plan(work, task.policy.deadline_s)

    def rounds(self) -> Iterator[RoundResult]:
        """Take part in rounds until the task is finished, yielding each one as it ends.

        The caller may stop iterating at any time, and the power may go: what was done of a round
        is kept in the state folder, and the next call goes on from there. A server that goes away
        is waited for; a round that was missed is reported with ``counted=False``. Where memory
        runs out, the same round is done again with a smaller sketch. A round that cannot be
        finished in time is given up before its end. A data file that has changed is read again
        before the next round.

        Raises:
            EdgeError: What cannot be mended by waiting; see :mod:`edge_sdk.errors`.
        """
        if self._data is None:
            raise ConfigError("taking part needs training data: name a JSONL file")
        task = self.membership.task
        journal = self.membership.journal
        ready = journal.update()
        if ready is not None:
            log.info("round %d: sending the update that was ready", ready[0].round_number)
            yield self._send(task, *ready, self.membership.moved_bytes)
        part = self._take_part(task, self._data)
        adoption = self._adoption(part)
        seen = -1
        while True:
            if part.trainer.is_outdated:
                part = self._with_new_data(part)
                adoption = self._adoption(part)
            before = self.membership.moved_bytes
            reply = self._check_in(part)
            if reply.assignment is None:
                journal.drop()
                if reply.state == "finished" or reply.round_number != seen:
                    seen = reply.round_number
                    self._look(adoption)
                if reply.state == "finished":
                    return
                self._begin("waiting")
                time.sleep(reply.retry_after_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                continue
            done = self._attempt(part, reply.assignment)
            if done is not None:
                yield self._submit(part, *done, before)
                seen = reply.round_number
                self._look(adoption)

    def _adoption(self, part: Participation) -> Adoption | None:
        """Return what becomes of new versions, if this device uses them."""
        if not self._is_adopting:
            return None
        from edge_sdk.adoption.adoption import Adoption

        def tell(report: EvaluationReport) -> None:
            self.membership.transport.report_evaluation(part.task.name, report)

        return Adoption(part, self.membership.source, self.membership.kept, tell, self._is_personal)

    def _look(self, adoption: Adoption | None) -> None:
        if adoption is not None:
            adoption.look()
            current = self.membership.kept.record.current
            self._begin("waiting", version=current.version if current is not None else 0)

    def _take_part(self, task: TaskSpec, data: Path) -> Participation:
        """Read the examples, plan for them as they are, and load the base."""
        from edge_sdk.training.local_trainer import LocalTrainer

        planner = self._planner(task)
        folder, share = self.membership.base_folder, self._held_out_share
        trainer = LocalTrainer(task, folder, data, planner.threads, share)
        return self._prepared(task, planner, trainer)

    def _prepared(
        self, task: TaskSpec, planner: LocalPlanner, trainer: LocalTrainer
    ) -> Participation:
        """Plan for the examples as they are, and load the base as the plan says."""
        from edge_sdk.training.local_trainer import describe
        from edge_sdk.training.participation import Participation

        if self._held_out_share and not trainer.held_out:
            log.warning("too few examples to hold some out: new versions are used untried")
        work = self._workload(task, trainer.longest, trainer.learned, len(trainer.examples))
        plan = planner.plan(work, task.policy.deadline_s)
        part = Participation(task, planner, trainer, work, plan)
        log.info("%d examples; %s", len(trainer.examples), describe(plan))
        while True:
            try:
                trainer.prepare(part.plan)
            except OutOfMemory as error:
                part.step_down(error)
            else:
                return part

    def _with_new_data(self, part: Participation) -> Participation:
        """Plan again with what the app wrote to the data file; with what was read if it is bad."""
        try:
            part.trainer.read_again()
        except DataError as error:
            log.warning("the examples that were read before stay in use: %s", error)
            return part
        return self._prepared(part.task, self._planner(part.task), part.trainer)

    def _attempt(
        self, part: Participation, work: Assignment
    ) -> tuple[Assignment, LocalResult] | None:
        """Train an assignment; None if the round ends without this device."""
        journal = self.membership.journal
        try:
            return self._train(part, work)
        except _GivenUp as error:  # what is done counts after all if the server prolongs the round
            log.warning("%s", error)
            self._given_up_on = work.round_number
            self._begin("waiting")
            time.sleep(error.left_s + random.uniform(0, 1))  # noqa: S311 - jitter
        except RoundClosed:
            log.warning("round %d closed before this device was done", work.round_number)
            journal.drop()
        except LossDiverged:
            journal.clear()  # to go on from there would diverge again
            raise
        return None

    def _train(self, part: Participation, work: Assignment) -> tuple[Assignment, LocalResult]:
        """Train an assignment, or a smaller one of the same round if memory runs out.

        Raises:
            RoundClosed: The round went on without this device.
            NotFeasible: There is no smaller plan.
        """
        while True:
            try:
                return work, self._carry_out(part, work)
            except OutOfMemory as error:
                part.step_down(error)
            work = self._smaller_work(part, work)

    def _carry_out(self, part: Participation, work: Assignment) -> LocalResult:
        """Train an assignment from where it was last kept, and keep it on the way."""
        deadline, journal = Deadline(work.deadline_s), self.membership.journal
        part.trainer.prepare(part.plan)
        targets = ",".join(part.plan.execution.trained_targets)
        facts = digest(encode_message(part.task)), part.trainer.data_digest(), targets
        journal.begin(work_id(work, *facts))
        self._begin("fetching", round_number=work.round_number, k=work.k, step=0)
        slices = self._slices(part.task, work, journal)
        start = journal.progress()
        already = f", {start.step} steps are done" if start is not None else ""
        log.info("round %d: training %d ranks%s", work.round_number, work.k, already)
        counts_late = part.task.policy.stragglers == "fold"

        def keep(steps: Steps) -> None:
            done, most = len(steps.losses), work.training.local_steps
            self._begin("training", step=done, steps=most, loss=steps.losses[-1])
            journal.offer(steps)
            if counts_late or work.round_number == self._given_up_on:
                return
            if deadline.is_out_of_reach(steps.step_s, most - done):
                journal.keep_progress(steps.progress())
                raise _GivenUp(
                    f"round {work.round_number} ends in {deadline.left_s():.0f} s, too early for "
                    f"the {most - done} steps that are left: given up",
                    deadline.left_s(),
                )

        return part.trainer.train(part.plan, work, slices, start=start, on_progress=keep)

    def _smaller_work(self, part: Participation, work: Assignment) -> Assignment:
        """Ask for a smaller sketch of the same round."""
        reply = self._check_in(part)
        if reply.assignment is None or reply.round_number != work.round_number:
            raise RoundClosed(f"round {work.round_number} is over: check in for the next one")
        return reply.assignment

    def _planner(self, task: TaskSpec) -> LocalPlanner:
        key = config_digest(self.membership.base_folder)
        return LocalPlanner(self._allowance, self.membership.state, key)

    def _workload(self, task: TaskSpec, length: int, learned: int, examples: int) -> Workload:
        base = task.base
        return Workload(
            shape=read_model_shape(self.membership.base_folder, base.task_type, len(base.labels)),
            layers=tuple(task.adapter.layers),
            r=task.adapter.r,
            sketch_sizes=tuple(task.policy.sketch_sizes),
            quantizations=self._allowance.quantizations,
            batch_size=min(task.training.batch_size, examples),
            local_steps=task.training.local_steps,
            length=length,
            learned=learned,
            wire_bytes=number_bytes(task.adapter.wire_dtype),
            update_encoding=task.training.update_encoding,
        )

    def _check_in(self, part: Participation) -> CheckInReply:
        transport, message = self.membership.transport, part.check_in()
        return self.membership.patiently(lambda: transport.check_in(part.task.name, message))

    def _slices(self, task: TaskSpec, work: Assignment, journal: Journal) -> Arrays:
        """Return what an assignment starts from: kept, or fetched and kept."""
        transport, body = self.membership.transport, journal.slice_body()
        if body is None:
            place = task, work.round_number, work.k
            body = self.membership.patiently(lambda: transport.slice_body(*place))
            journal.keep_slice(work, body)
        shapes = adapter_shapes(task.adapter, work.k)
        slices, message = decode(body, shapes, task.adapter.wire_dtype)
        if task.training.error_feedback:
            self._ranks = read_ranks(message, task.adapter, work.k)
        return slices

    def _encode(self, task: TaskSpec, work: Assignment, update: Arrays, report: bytes) -> bytes:
        if not task.training.error_feedback:
            return encode_update(update, task, work.seed, report)
        return self._feedback(task).encode(update, self._ranks, work.seed, report)

    def _feedback(self, task: TaskSpec) -> ErrorFeedback:
        return ErrorFeedback(self.membership.state, self.membership.transport.server, task)

    def _submit(
        self,
        part: Participation,
        work: Assignment,
        result: LocalResult,
        before: tuple[int, int],
    ) -> RoundResult:
        """Keep the update of a round, then send it."""
        peak_bytes = peak_rss_bytes()
        part.learn(work, result, peak_bytes)
        report = UpdateReport(
            examples=len(part.trainer.examples),
            loss=result.loss,
            seconds=result.seconds,
            peak_rss_bytes=peak_bytes,
        )
        update = self._encode(part.task, work, result.update, encode_message(report))
        facts = KeptUpdate(
            round_number=work.round_number,
            k=work.k,
            loss=result.loss,
            training_s=result.seconds,
            planned_bytes=part.plan.cost.peak_bytes,
            peak_rss_bytes=peak_bytes,
        )
        self.membership.journal.keep_update(facts, update)
        return self._send(part.task, facts, update, before)

    def _send(
        self, task: TaskSpec, facts: KeptUpdate, update: bytes, before: tuple[int, int]
    ) -> RoundResult:
        """Send an update until the server has it; one it has already is counted once."""
        transport, journal = self.membership.transport, self.membership.journal
        self._begin("sending", round_number=facts.round_number, k=facts.k)
        counted = True
        try:
            place = task.name, facts.round_number
            self.membership.patiently(lambda: transport.submit(*place, update))
        except _NOT_COUNTED as error:
            log.warning("the update of round %d is not counted: %s", facts.round_number, error)
            counted = False
        except _USELESS:
            journal.clear()
            raise
        if counted and task.training.error_feedback:
            self._feedback(task).confirm(digest(update))
        journal.clear()
        save_link(self.membership.state, transport.meter.link())
        moved = self.membership.moved_bytes
        return RoundResult(
            round_number=facts.round_number,
            k=facts.k,
            loss=facts.loss,
            update_bytes=len(update),
            upload_bytes=moved[0] - before[0],
            download_bytes=moved[1] - before[1],
            dense_bytes=dense_bytes(task.adapter),
            training_s=facts.training_s,
            planned_bytes=facts.planned_bytes,
            peak_rss_bytes=facts.peak_rss_bytes,
            counted=counted,
        )

    def _await_server(self, trouble: str) -> None:
        if self._on_phase is not None:
            self._on_phase("retrying", trouble=trouble)

    def _begin(self, phase: str, **facts: float) -> None:
        if self._on_phase is not None:
            up, down = self.membership.moved_bytes
            self._on_phase(phase, uploaded_bytes=up, downloaded_bytes=down, **facts)
