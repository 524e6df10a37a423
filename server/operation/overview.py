"""Build the operator's overview from one reading transaction, in a bounded size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from server.operation.overview_messages import (
    Coverage,
    Overview,
    RoundSummary,
    RunningRound,
    TaskLine,
    TaskState,
    TaskView,
    VersionLine,
    WaitingDevice,
)
from server.operation.refusals import Refusals
from server.operation.round_summary import name_of, summarize_round
from server.registry.evaluating import Evaluation, shown_evaluations
from server.rounds.coverage import rank_ages, trained_ranks
from server.rules.rounds import Round, is_finished
from server.storage.lookup import find_task
from server.storage.store import AdapterRow, Store, TaskRow, Transaction

MOST_TASKS = 100
MOST_ROUNDS = 40
MOST_VERSIONS = 20
MOST_WAITING = 8
MOST_COLUMNS = 64

MOST_DRAWS = 200_000
"""Sketches (updates times layers) that one overview draws again to see what rounds covered."""

_REMEMBERED_ROUNDS = 1000

_Key = tuple[str, int]  # task and round number
_Value = TypeVar("_Value")


class Overviews:
    """Builds overviews, one at a time.

    What a closed round added up to never changes, so it is worked out once and remembered: a
    page that asks every few seconds costs the rows of the open round. What is too much for one
    overview comes with the next ones.

    Args:
        store: Where rows are.
        clock: Seconds since 1970.
        refusals: Of this process.
        min_evaluating_devices: That must have reported on a version before that is shown.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        refusals: Refusals,
        min_evaluating_devices: int,
    ) -> None:
        self._store = store
        self._min_evaluating_devices = min_evaluating_devices
        self._clock = clock
        self._refusals = refusals
        self._lock = threading.Lock()
        self._summaries: OrderedDict[_Key, RoundSummary] = OrderedDict()
        self._trained: OrderedDict[_Key, list[float]] = OrderedDict()
        self._ages: dict[str, tuple[int, NDArray[np.int64]]] = {}

    def build(self, task: str | None = None) -> Overview:
        """Return the overview with the details of one task.

        Args:
            task: Its name; without one, the first that runs, or is not finished, or the first.

        Raises:
            NotFound: There is no such task.
        """
        now = self._clock()
        with self._lock, self._store.read() as tx:
            names = tx.task_names()
            lines = [_task_line(tx, find_task(tx, name)) for name in names[:MOST_TASKS]]
            chosen = task or _first_to_look_at(lines)
            view = self._view(tx, find_task(tx, chosen), now) if chosen else None
        return Overview(
            now=now,
            started_at=self._refusals.started_at,
            tasks=lines,
            tasks_total=len(names),
            task=view,
            refusals=self._refusals.lines(),
        )

    def _view(self, tx: Transaction, task: TaskRow, now: float) -> TaskView:
        spec, versions, last = task.spec, tx.adapters(task.name), tx.last_round(task.name)
        rounds = _newest_rounds(tx, last)
        full_rank_bytes = versions[0].size_bytes
        closed = [self._look_at(tx, x, full_rank_bytes) for x in rounds if x.state == "closed"]
        running = [x for x in rounds if x.state != "closed"]
        tip = tx.last_pointer(task.name)
        evaluations = shown_evaluations(tx, task.name, self._min_evaluating_devices)
        newest = reversed(versions[-MOST_VERSIONS:])
        return TaskView(
            line=_task_line(tx, task),
            r=spec.adapter.r,
            layers=len(spec.adapter.layers),
            sketch_sizes=sorted(spec.policy.sketch_sizes),
            cohort_size=spec.policy.cohort_size,
            sketching=spec.policy.sketching,
            stragglers=spec.policy.stragglers,
            weighting=spec.aggregation.weighting,
            combination=spec.aggregation.combination,
            running=_running(tx, task, running[-1], now) if running else None,
            rounds=[*closed, *(summarize_round(tx, x, full_rank_bytes) for x in running)],
            coverage=self._coverage(tx, task, closed) if closed else None,
            versions=[_version_line(row, evaluations.get(row.version)) for row in newest],
            versions_total=len(versions),
            stable_version=tip.version if tip else None,
            canary_version=tip.canary_version if tip else None,
            canary_share=tip.canary_share if tip else 0.0,
        )

    def _look_at(self, tx: Transaction, row: Round, full_rank_bytes: int) -> RoundSummary:
        """Return what a closed round added up to, worked out now or before."""
        key = (row.task, row.number)
        if key not in self._summaries:
            _remember(self._summaries, key, summarize_round(tx, row, full_rank_bytes))
        return self._summaries[key]

    def _coverage(
        self, tx: Transaction, task: TaskRow, closed: Sequence[RoundSummary]
    ) -> Coverage | None:
        """Return the coverage of closed rounds, or nothing if the newest is too large for it."""
        newest, group = closed[-1].round_number, _group(task)
        self._draw_again(tx, task, closed)
        if (task.name, newest) not in self._trained:
            return None
        if self._ages.get(task.name, (0, None))[0] != newest:
            self._ages[task.name] = (newest, rank_ages(tx, task))
        ages = self._ages[task.name][1]
        oldest = int(np.argmax(ages))
        return Coverage(
            group=group,
            rounds=[x.round_number for x in closed],
            updates=[self._trained.get((task.name, x.round_number)) for x in closed],
            ages=np.maximum.reduceat(ages, np.arange(0, len(ages), group)).tolist(),
            oldest_rank=oldest,
            oldest_age=int(ages[oldest]),
        )

    def _draw_again(self, tx: Transaction, task: TaskRow, closed: Sequence[RoundSummary]) -> None:
        """Work out which ranks rounds trained, newest first, as many as one overview may cost."""
        left = MOST_DRAWS
        for summary in reversed(closed):
            key = (task.name, summary.round_number)
            draws = summary.accepted * len(task.spec.adapter.layers)
            if key not in self._trained and draws <= left:
                left -= draws
                row = trained_ranks(tx, task, [summary.round_number])[0]
                _remember(self._trained, key, _means(row, _group(task)))


def _remember(memory: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    memory[key] = value
    if len(memory) > _REMEMBERED_ROUNDS:
        memory.popitem(last=False)


def _group(task: TaskRow) -> int:
    """Return how many neighbouring ranks share a column of the heat map."""
    return -(-task.spec.adapter.r // MOST_COLUMNS)


def _means(row: NDArray[np.float64], group: int) -> list[float]:
    """Return the mean of every ``group`` neighbours; the last may be fewer."""
    starts = np.arange(0, len(row), group)
    sizes = np.minimum(group, len(row) - starts)
    return [round(float(x), 3) for x in np.add.reduceat(row, starts) / sizes]


def _task_line(tx: Transaction, task: TaskRow) -> TaskLine:
    last = tx.last_round(task.name)
    return TaskLine(
        name=task.name,
        model=task.spec.base.model,
        state=_task_state(task, last),
        rounds=task.spec.policy.rounds,
        closed=0 if last is None else last.number - (last.state != "closed"),
    )


def _task_state(task: TaskRow, last: Round | None) -> TaskState:
    if last is None:
        return "new"
    if last.state != "closed":
        return last.state
    return "finished" if is_finished(last, task.spec.policy) else "between"


def _first_to_look_at(lines: Sequence[TaskLine]) -> str | None:
    running = [line for line in lines if line.state in ("open", "closing")]
    unfinished = [line for line in lines if line.state != "finished"]
    return next((line.name for line in [*running, *unfinished, *lines]), None)


def _newest_rounds(tx: Transaction, last: Round | None) -> list[Round]:
    if last is None:
        return []
    numbers = range(max(1, last.number - MOST_ROUNDS + 1), last.number)
    found = [tx.round(last.task, number) for number in numbers]
    return [*(row for row in found if row is not None), last]


def _running(tx: Transaction, task: TaskRow, row: Round, now: float) -> RunningRound:
    assignments = tx.assignments(task.name, row.number)
    sent = {x.device_id for x in tx.updates(task.name, row.number) if x.round_number == row.number}
    waiting = [work for work in assignments if work.device_id not in sent]
    waiting.sort(key=lambda work: (work.assigned_at, work.device_id))
    policy = task.spec.policy
    return RunningRound(
        round_number=row.number,
        state=row.state,
        assigned=tx.count_assignments(task.name, row.number),
        accepted=tx.count_updates(task.name, row.number),
        quorum=policy.quorum,
        min_updates=policy.min_updates,
        deadline_s=max(0.0, row.deadline_at - now) if row.state == "open" else 0.0,
        is_prolonged=row.stretch_at > row.opened_at,
        waiting=[
            WaitingDevice(
                device_id=work.device_id,
                device_name=name_of(tx, work.device_id),
                k=work.k,
                since_s=max(0.0, now - work.assigned_at),
            )
            for work in waiting[:MOST_WAITING]
        ],
        waiting_total=len(waiting),
    )


def _version_line(row: AdapterRow, evaluation: Evaluation | None) -> VersionLine:
    return VersionLine(
        version=row.version,
        round_number=row.round_number,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        digest=row.digest,
        evaluation=evaluation,
    )
