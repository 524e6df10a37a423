"""The device's side of a task: plan, check in, fetch, train, submit, round after round."""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edge_sdk.adapter_source import AdapterSource
from edge_sdk.cost import Workload
from edge_sdk.device import peak_rss_bytes
from edge_sdk.enrolment import join
from edge_sdk.errors import (
    ConfigError,
    OutOfMemory,
    RoundClosed,
    ServerBusy,
    ServerUnreachable,
    WrongBaseModel,
)
from edge_sdk.identity import default_state_folder
from edge_sdk.link import save_link
from edge_sdk.local_plan import Allowance, LocalPlanner
from edge_sdk.model_folder import config_digest, find_model, read_model_shape, weights_digest
from edge_sdk.peft_folder import write_peft_folder
from edge_sdk.plan import Plan
from edge_sdk.transport import Transport
from edge_sdk.wire.messages import Assignment, TaskSpec, UpdateReport, encode_message
from edge_sdk.wire.payload import Arrays, adapter_shapes, decode, dense_bytes, encode, number_bytes

if TYPE_CHECKING:
    from edge_sdk.participation import Participation
    from edge_sdk.training import LocalResult

log = logging.getLogger("edge_sdk")

FIRST_OUTAGE_WAIT_S = 1.0
LONGEST_OUTAGE_WAIT_S = 30.0

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """One round this device took part in.

    Attributes:
        round_number: From 1.
        k: Ranks trained.
        loss: Mean training loss over the local steps.
        upload_bytes: Bodies sent in this round.
        download_bytes: Bodies received in this round.
        dense_bytes: The part of each that is a classifier's head and does not follow k.
        training_s: Wall time of the local steps.
        planned_bytes: Peak memory the plan predicted.
        peak_rss_bytes: Peak memory of this process so far.
        counted: Whether the update came in time.
    """

    round_number: int
    k: int
    loss: float
    upload_bytes: int
    download_bytes: int
    dense_bytes: int
    training_s: float
    planned_bytes: int
    peak_rss_bytes: int
    counted: bool


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
        outage_patience_s: How long to wait for an unreachable server before giving up.
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
        outage_patience_s: float = 600.0,
    ) -> None:
        self._data = Path(data) if data is not None else None
        self._server = server
        self._task_name = task
        self._model = model
        self._enrolment_token = enrolment_token
        self._name = name or socket.gethostname()
        self._state = Path(state_folder) if state_folder else default_state_folder()
        self._allowance = allowance or Allowance()
        self._outage_patience_s = outage_patience_s
        self._transport: Transport | None = None
        self._task: TaskSpec | None = None

    def plan(self) -> Plan:
        """Decide what this device can afford now, for examples as long as the task allows.

        Raises:
            NotFeasible: Nothing fits the budget.
            WrongBaseModel: The local base model is not the one the task pins.
        """
        task = self._fetch_task()
        length = task.training.max_length
        work = self._workload(task, length, learned=length, examples=task.training.batch_size)
        return self._planner(task).plan(work, task.policy.deadline_s)

    def rounds(self) -> Iterator[RoundResult]:
        """Take part in rounds until the task is finished, yielding each one as it ends.

        The caller may stop iterating at any time. A server that goes away is waited for; a
        round that was missed is reported with ``counted=False``. Where memory runs out, the
        same round is done again with a smaller sketch.

        Raises:
            EdgeError: What cannot be mended by waiting; see :mod:`edge_sdk.errors`.
        """
        if self._data is None:
            raise ConfigError("taking part needs training data: name a JSONL file")
        task = self._fetch_task()
        part = self._take_part(task, self._data)
        transport = self._connected()
        while True:
            before = transport.uploaded_bytes, transport.downloaded_bytes
            reply = self._patiently(lambda: transport.check_in(task.name, part.check_in()))
            if reply.state == "finished":
                return
            if reply.assignment is None:
                time.sleep(reply.retry_after_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                continue
            try:
                work, result = self._train(part, reply.assignment)
            except RoundClosed:
                log.warning("round %d closed before this device was done", reply.round_number)
                continue
            yield self._submit(part, work, result, before)

    def _take_part(self, task: TaskSpec, data: Path) -> Participation:
        """Read the examples, plan for them as they are, and load the base."""
        from edge_sdk.local_trainer import LocalTrainer, describe
        from edge_sdk.participation import Participation

        planner = self._planner(task)
        trainer = LocalTrainer(task, self._base_folder(task), data, planner.threads)
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

    def _train(self, part: Participation, work: Assignment) -> tuple[Assignment, LocalResult]:
        """Train an assignment, or a smaller one of the same round if memory runs out.

        Raises:
            RoundClosed: The round went on without this device.
            NotFeasible: There is no smaller plan.
        """
        while True:
            slices = self._fetch_slice(part.task, work)
            log.info("round %d: training %d ranks", work.round_number, work.k)
            try:
                return work, part.trainer.train(part.plan, work, slices)
            except OutOfMemory as error:
                part.step_down(error)
            del slices
            work = self._smaller_work(part, work)

    def _smaller_work(self, part: Participation, work: Assignment) -> Assignment:
        """Ask for a smaller sketch of the same round."""
        transport = self._connected()
        reply = self._patiently(lambda: transport.check_in(part.task.name, part.check_in()))
        if reply.assignment is None or reply.round_number != work.round_number:
            raise RoundClosed(f"round {work.round_number} is over: check in for the next one")
        return reply.assignment

    def _planner(self, task: TaskSpec) -> LocalPlanner:
        key = config_digest(self._base_folder(task))
        return LocalPlanner(self._allowance, self._state, key)

    def _workload(self, task: TaskSpec, length: int, learned: int, examples: int) -> Workload:
        base = task.base
        return Workload(
            shape=read_model_shape(self._base_folder(task), base.task_type, len(base.labels)),
            layers=tuple(task.adapter.layers),
            r=task.adapter.r,
            sketch_sizes=tuple(task.policy.sketch_sizes),
            quantizations=self._allowance.quantizations,
            batch_size=min(task.training.batch_size, examples),
            local_steps=task.training.local_steps,
            length=length,
            learned=learned,
            wire_bytes=number_bytes(task.adapter.wire_dtype),
        )

    def pull(self, folder: str | Path) -> int:
        """Write the adapter the operator gives to this device as a PEFT folder; return its version.

        Nothing is written before its signature, its origin and every byte were checked.

        Raises:
            UntrustedAdapter: It is not from this device's server, of another base model, or older
                than one this device was given before.
        """
        task = self._fetch_task()
        base = str(self._base_folder(task))
        found = self._patiently(lambda: self._source().fetch(task))
        write_peft_folder(Path(folder), task, found.arrays, base, found.signed)
        return found.manifest.version

    def _source(self) -> AdapterSource:
        identity = join(self._state, self._server, self._enrolment_token, self._name)
        return AdapterSource(self._connected(), self._state, identity.server, identity.device_id)

    def _fetch_slice(self, task: TaskSpec, work: Assignment) -> Arrays:
        transport = self._connected()
        body = self._patiently(lambda: transport.slice_body(task, work.round_number, work.k))
        return decode(body, adapter_shapes(task.adapter, work.k), task.adapter.wire_dtype)[0]

    def _submit(
        self,
        part: Participation,
        work: Assignment,
        result: LocalResult,
        before: tuple[int, int],
    ) -> RoundResult:
        transport, adapter = self._connected(), part.task.adapter
        peak_bytes = peak_rss_bytes()
        part.learn(work, result, peak_bytes)
        report = UpdateReport(
            examples=len(part.trainer.examples),
            loss=result.loss,
            seconds=result.seconds,
            peak_rss_bytes=peak_bytes,
        )
        update = encode(result.update, adapter.wire_dtype, encode_message(report))
        counted = True
        try:
            self._patiently(lambda: transport.submit(part.task.name, work.round_number, update))
        except RoundClosed:
            log.warning("round %d closed before this device was done", work.round_number)
            counted = False
        save_link(self._state, transport.meter.link())
        return RoundResult(
            round_number=work.round_number,
            k=work.k,
            loss=result.loss,
            upload_bytes=transport.uploaded_bytes - before[0],
            download_bytes=transport.downloaded_bytes - before[1],
            dense_bytes=dense_bytes(adapter),
            training_s=result.seconds,
            planned_bytes=part.plan.cost.peak_bytes,
            peak_rss_bytes=peak_bytes,
            counted=counted,
        )

    def _connected(self) -> Transport:
        if self._transport is None:
            identity = join(self._state, self._server, self._enrolment_token, self._name)
            self._transport = Transport(identity.server, identity)
        return self._transport

    def _fetch_task(self) -> TaskSpec:
        if self._task is None:
            transport = self._connected()
            name = self._task_name or _only(self._patiently(transport.tasks))
            self._task = self._patiently(lambda: transport.task(name))
        return self._task

    def _base_folder(self, task: TaskSpec) -> Path:
        folder = find_model(self._model or task.base.model, task.base.revision)
        found = weights_digest(folder)
        if found != task.base.digest:
            raise WrongBaseModel(
                f"the weights in {folder} have digest {found[:12]}…, task {task.name} wants "
                f"{task.base.model} with {task.base.digest[:12]}…: get that model, or name its "
                "folder"
            )
        return folder

    def _patiently(self, exchange: Callable[[], _Answer]) -> _Answer:
        """Repeat an exchange until the server answers or patience runs out."""
        waited, pause = 0.0, FIRST_OUTAGE_WAIT_S
        while True:
            try:
                return exchange()
            except (ServerUnreachable, ServerBusy) as error:
                wanted = error.retry_after_s if isinstance(error, ServerBusy) else 0.0
                if max(waited, wanted) >= self._outage_patience_s:
                    raise
                rest = max(wanted, pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                log.warning("%s; trying again in %.1f s", error, rest)
                time.sleep(rest)
                waited += rest
                pause = min(2 * pause, LONGEST_OUTAGE_WAIT_S)


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise ConfigError(
            f"the server has {len(names)} tasks ({', '.join(names) or 'none'}): name one of them"
        )
    return names[0]
