"""The fleet as gauges, counted from the database: right over replicas and restarts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric

from edge_sdk.errors import EdgeError
from server.rounds.rank_age import RankAge
from server.storage.evaluation_store import EvaluationRow
from server.storage.fleet_store import FleetCounts, TaskCounts
from server.storage.store import Store

log = logging.getLogger(__name__)

_FRESH_S = 5.0


class FleetMetrics:
    """Collects the gauges of all tasks; the database is asked at most every five seconds.

    A database that does not answer is a gauge of its own, so that the other metrics of the
    process can still be read.

    Args:
        store: Where rows are.
        clock: Seconds since 1970.
        min_evaluating_devices: That must have reported on a version before it is shown.
        monotonic: Seconds since any moment, never set back.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        min_evaluating_devices: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock = clock
        self._min_evaluating_devices = min_evaluating_devices
        self._monotonic = monotonic
        self._ages = RankAge(store)
        self._lock = threading.Lock()
        self._counts: FleetCounts | None = None
        self._evaluations: Mapping[str, EvaluationRow] = {}
        self._counted_at = float("-inf")

    def collect(self) -> Iterable[Metric]:
        """Yield every gauge; called by the registry at each scrape."""
        with self._lock:
            if self._monotonic() - self._counted_at >= _FRESH_S:
                self._counts = self._count()
                self._counted_at = self._monotonic()
            counts, evaluations = self._counts, self._evaluations
        yield _gauge("database_up", "1 if the database answers", float(counts is not None))
        if counts is not None:
            yield _gauge("tasks", "Tasks", len(counts.tasks))
            yield _gauge("devices", "Enrolled devices that were not revoked", counts.devices)
            closed = {name: task.rounds["closed"] for name, task in counts.tasks.items()}
            yield from _of_tasks(counts.tasks, self._ages.known(closed), self._clock())
            yield from _of_evaluations(evaluations)

    def close(self) -> None:
        """Let go of the thread that works out ages."""
        self._ages.close()

    def _count(self) -> FleetCounts | None:
        try:
            with self._store.read() as tx:
                self._evaluations = tx.newest_evaluations(self._min_evaluating_devices)
                return tx.fleet_counts()
        except EdgeError as error:
            log.warning("the fleet cannot be counted: %s", error)
            return None


def _of_tasks(
    tasks: Mapping[str, TaskCounts], ages: Mapping[str, int], now: float
) -> Iterable[GaugeMetricFamily]:
    rounds = _family("rounds", "Rounds by state", "state")
    updates = _family("updates", "Accepted updates by what became of them", "outcome")
    uploads = _family("upload_bytes", "Bytes of all accepted updates")
    downloads = _family("download_bytes", "Bytes of all slices handed out")
    versions = _family("adapter_version", "Latest adapter version")
    oldest = _family("oldest_rank_age_rounds", "Closed rounds since the coldest rank was trained")
    idle = _family("last_round_closed_age_seconds", "Seconds since a round was closed")
    for name, task in tasks.items():
        for state, count in task.rounds.items():
            rounds.add_metric([name, state], count)
        for outcome, count in task.updates.items():
            updates.add_metric([name, outcome], count)
        uploads.add_metric([name], task.upload_bytes)
        downloads.add_metric([name], task.download_bytes)
        versions.add_metric([name], task.adapter_version)
        if name in ages:
            oldest.add_metric([name], ages[name])
        if task.closed_at is not None:
            idle.add_metric([name], max(0.0, now - task.closed_at))
    return rounds, updates, uploads, downloads, versions, oldest, idle


def _of_evaluations(evaluations: Mapping[str, EvaluationRow]) -> Iterable[GaugeMetricFamily]:
    versions = _family("evaluated_version", "Newest version that enough devices reported on")
    devices = _family("evaluating_devices", "Devices that reported on it")
    accepted = _family("evaluation_accepted_ratio", "Share of them that use it")
    change = _family("evaluation_loss_change", "Change of the mean loss on held-out examples by it")
    for name, row in evaluations.items():
        versions.add_metric([name], row.version)
        devices.add_metric([name], row.devices)
        accepted.add_metric([name], row.accepted / row.devices)
        change.add_metric([name], (row.loss_after - row.loss_before) / row.examples)
    return versions, devices, accepted, change


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"edge_server_{name}", text, labels=("task", *labels))


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"edge_server_{name}", text, value=value)
