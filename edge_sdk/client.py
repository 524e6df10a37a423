"""The device's side of a task: plan, check in, fetch, train, submit, round after round."""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edge_sdk.device import peak_rss_bytes, probe
from edge_sdk.errors import ConfigError, RoundClosed, ServerBusy, ServerUnreachable, WrongBaseModel
from edge_sdk.identity import Identity, default_state_folder, load_identity, save_identity
from edge_sdk.memory import Quantization, activation_bytes
from edge_sdk.model_folder import find_model, read_model_shape, weights_digest
from edge_sdk.peft_folder import write_peft_folder
from edge_sdk.plan import Plan, Workload, make_plan, memory_budget
from edge_sdk.quantities import format_bytes
from edge_sdk.transport import Transport
from edge_sdk.wire.messages import Assignment, CheckIn, TaskSpec, UpdateReport, encode_message
from edge_sdk.wire.payload import Arrays, adapter_shapes, decode, dense_bytes, encode

if TYPE_CHECKING:
    from edge_sdk.base_model import LoadedBase
    from edge_sdk.data import Example

log = logging.getLogger("edge_sdk")

FIRST_OUTAGE_WAIT_S = 1.0
LONGEST_OUTAGE_WAIT_S = 30.0

_Answer = TypeVar("_Answer")


def join(
    state_folder: Path, server: str | None, enrolment_token: str | None, name: str
) -> Identity:
    """Enrol this device on a server, or return the identity it already has there.

    Args:
        state_folder: Where the identity is kept.
        server: Base address; None accepts the server joined before.
        enrolment_token: From the operator; not needed by a device that joined before.
        name: Of this device, for people.

    Raises:
        ConfigError: No server or enrolment token to join with.
        SyncError: The server could not be reached or refused.
    """
    known = load_identity(state_folder)
    if known is not None and server in (None, known.server):
        return known
    if server is None or enrolment_token is None:
        raise ConfigError(
            f"this device has not joined {server or 'a server'} yet: give the server's address "
            "and an enrolment token from its operator"
        )
    enrolment = Transport(server).enrol(enrolment_token, name)
    identity = Identity(
        server=server,
        device_id=enrolment.device_id,
        device_token=enrolment.device_token,
        name=name,
    )
    save_identity(state_folder, identity)
    return identity


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
    peak_rss_bytes: int
    counted: bool


class EdgeClient:
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
        memory_budget_bytes: The most the training process may use; None takes a share of
            what is free.
        quantization: Number format of the frozen base.
        threads: CPU threads for training; None takes the cores this process may use.
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
        memory_budget_bytes: int | None = None,
        quantization: Quantization = "nf4",
        threads: int | None = None,
        outage_patience_s: float = 600.0,
    ) -> None:
        self._data = Path(data) if data is not None else None
        self._server = server
        self._task_name = task
        self._model = model
        self._enrolment_token = enrolment_token
        self._name = name or socket.gethostname()
        self._state = Path(state_folder) if state_folder else default_state_folder()
        self._memory_budget_bytes = memory_budget_bytes
        self._quantization: Quantization = quantization
        self._threads = threads
        self._outage_patience_s = outage_patience_s
        self._transport: Transport | None = None
        self._task: TaskSpec | None = None
        self._base: LoadedBase | None = None

    def plan(self) -> Plan:
        """Decide the largest sketch this device can afford now, for examples as long as allowed.

        Raises:
            NotFeasible: Nothing fits the budget.
            WrongBaseModel: The local base model is not the one the task pins.
        """
        length = self._fetch_task().training.max_length
        return self._plan(length, predicted=length)

    def _plan(self, length: int, predicted: int) -> Plan:
        task = self._fetch_task()
        labels = len(task.base.labels)
        report = probe()
        work = Workload(
            shape=read_model_shape(self._base_folder(task), task.base.task_type, labels),
            layers=task.adapter.layers,
            r=task.adapter.r,
            quantization=self._quantization,
            compute_bytes=activation_bytes(self._quantization, report.has_native_bf16),
            batch_size=task.training.batch_size,
            length=length,
            predicted=predicted,
        )
        return make_plan(
            work, memory_budget(report.memory_available_bytes, self._memory_budget_bytes)
        )

    def _plan_for(self, examples: Sequence[Example]) -> Plan:
        """Plan for the data as it is: its longest example, and the places where it is learned."""
        length = max(len(example.tokens) for example in examples)
        learned = max(sum(example.is_learned) for example in examples)
        batch_size = self._fetch_task().training.batch_size
        return self._plan(length, predicted=min(length, batch_size * learned))

    def rounds(self) -> Iterator[RoundResult]:
        """Take part in rounds until the task is finished, yielding each one as it ends.

        The caller may stop iterating at any time. A server that goes away is waited for; a
        round that was missed is reported with ``counted=False``.

        Raises:
            EdgeError: What cannot be mended by waiting; see :mod:`edge_sdk.errors`.
        """
        from edge_sdk.base_model import load_tokenizer
        from edge_sdk.data import load_examples

        if self._data is None:
            raise ConfigError("taking part needs training data: name a JSONL file")
        task = self._fetch_task()
        folder = self._base_folder(task)
        examples = load_examples(
            self._data, load_tokenizer(folder), task.base, task.training.max_length
        )
        plan = self._plan_for(examples)
        log.info(
            "%d examples; can train up to %d of %d ranks in %s",
            len(examples),
            plan.k,
            plan.r,
            format_bytes(plan.budget_bytes),
        )
        message = CheckIn(base_digest=task.base.digest, affordable_k=plan.k, examples=len(examples))
        transport = self._connected()
        while True:
            before = transport.uploaded_bytes, transport.downloaded_bytes
            reply = self._patiently(lambda: transport.check_in(task.name, message))
            if reply.state == "finished":
                return
            if reply.assignment is None:
                time.sleep(reply.retry_after_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                continue
            try:
                slices = self._fetch_slice(task, reply.assignment)
            except RoundClosed:
                log.warning("round %d closed before this device began", reply.round_number)
                continue
            yield self._one_round(task, folder, reply.assignment, slices, examples, before)

    def pull(self, folder: str | Path) -> int:
        """Write the newest global adapter as a PEFT folder and return its version."""
        task = self._fetch_task()
        transport = self._connected()
        newest = transport.adapters(task.name)[-1]
        shapes = adapter_shapes(task.adapter, task.adapter.r)
        body = transport.adapter_body(task, newest.version)
        arrays, _ = decode(body, shapes, task.adapter.wire_dtype)
        write_peft_folder(Path(folder), task, arrays, str(self._base_folder(task)))
        return newest.version

    def _fetch_slice(self, task: TaskSpec, work: Assignment) -> Arrays:
        transport = self._connected()
        body = self._patiently(lambda: transport.slice_body(task, work.round_number, work.k))
        return decode(body, adapter_shapes(task.adapter, work.k), task.adapter.wire_dtype)[0]

    def _one_round(
        self,
        task: TaskSpec,
        folder: Path,
        work: Assignment,
        slices: Arrays,
        examples: Sequence[Example],
        before: tuple[int, int],
    ) -> RoundResult:
        from edge_sdk.training import train_round

        transport = self._connected()
        base = self._loaded(task, folder)
        log.info("round %d: training %d ranks", work.round_number, work.k)
        result = train_round(
            base,
            task.adapter,
            work.k,
            slices,
            work.training,
            examples,
            work.seed,
            on_step=lambda step, loss: log.debug("step %d: loss %.4f", step, loss),
        )
        report = UpdateReport(
            examples=len(examples),
            loss=result.loss,
            seconds=result.seconds,
            peak_rss_bytes=peak_rss_bytes(),
        )
        update = encode(result.update, task.adapter.wire_dtype, encode_message(report))
        counted = self._submit(task.name, work.round_number, update)
        return RoundResult(
            round_number=work.round_number,
            k=work.k,
            loss=result.loss,
            upload_bytes=transport.uploaded_bytes - before[0],
            download_bytes=transport.downloaded_bytes - before[1],
            dense_bytes=dense_bytes(task.adapter),
            training_s=result.seconds,
            peak_rss_bytes=report.peak_rss_bytes,
            counted=counted,
        )

    def _submit(self, task: str, round_number: int, update: bytes) -> bool:
        transport = self._connected()
        try:
            self._patiently(lambda: transport.submit(task, round_number, update))
        except RoundClosed:
            log.warning("round %d closed before this device was done", round_number)
            return False
        return True

    def _connected(self) -> Transport:
        if self._transport is None:
            identity = join(self._state, self._server, self._enrolment_token, self._name)
            self._transport = Transport(identity.server, identity.device_token)
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

    def _loaded(self, task: TaskSpec, folder: Path) -> LoadedBase:
        """Load the base once and keep it between rounds."""
        if self._base is None:
            from edge_sdk.base_model import load_base, verify_layers

            threads = self._threads or probe().cores
            log.info("loading the base model from %s", folder)
            self._base = load_base(folder, task.base, self._quantization, threads)
            verify_layers(self._base, task.adapter)
        return self._base

    def _patiently(self, exchange: Callable[[], _Answer]) -> _Answer:
        """Repeat an exchange until the server answers or patience runs out."""
        waited, pause = 0.0, FIRST_OUTAGE_WAIT_S
        while True:
            try:
                return exchange()
            except (ServerUnreachable, ServerBusy) as error:
                if waited >= self._outage_patience_s:
                    raise
                wanted = error.retry_after_s if isinstance(error, ServerBusy) else 0.0
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
