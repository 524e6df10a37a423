"""Plan on this very device: measure what a plan counts with, and learn how plans turn out."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import psutil

from edge_sdk.compute.rates import Rates
from edge_sdk.device import DeviceReport, fingerprint, probe
from edge_sdk.errors import DeviceError, StorageError
from edge_sdk.memory.memory_guard import default_floor_bytes
from edge_sdk.network.link import load_link
from edge_sdk.planning.allowance import Allowance
from edge_sdk.planning.calibration import Calibration
from edge_sdk.planning.cost import Budget, Machine, Workload, cost_of
from edge_sdk.planning.microbenchmark import known_rates, library_versions, measure_rates
from edge_sdk.planning.plan import Plan, make_plan, memory_budget

log = logging.getLogger("edge_sdk")


class LocalPlanner:
    """Plans for one base model on this device.

    Args:
        allowance: What the owner allows.
        state_folder: Where corrections are kept.
        model_key: Names the base model in the corrections.
    """

    def __init__(self, allowance: Allowance, state_folder: Path, model_key: str) -> None:
        self._allowance = allowance
        self._model_key = model_key
        self._link = load_link(state_folder)
        self._report = probe()
        self._calibration = Calibration(state_folder, fingerprint(self._report, library_versions()))

    @property
    def report(self) -> DeviceReport:
        """The device as it was when planning began."""
        return self._report

    @property
    def threads(self) -> int:
        """CPU threads for training."""
        return self._allowance.threads or self._report.cores

    def rates(self, measure: bool) -> Rates:
        """Return the rates of this device, measured now if they are not known and it can be."""
        rates = known_rates(self._report, self.threads)
        if rates.origin == "measured" or not measure:
            return rates
        log.info("measuring this device once; it takes some seconds")
        try:
            return measure_rates(self._report, self.threads)
        except DeviceError as error:
            log.warning("%s", error)
            return rates

    def machine(self, measure: bool = False) -> Machine:
        """Return what is known about this device.

        Args:
            measure: Run the benchmark if this device was never measured.
        """
        return Machine(
            has_native_bf16=self._report.has_native_bf16,
            rates=self.rates(measure),
            corrections=self._calibration.corrections(self._model_key),
        )

    def budget(self) -> Budget:
        """Return what a round may cost now."""
        allowance = self._allowance
        held = int(psutil.Process().memory_info().rss)
        memory_bytes, floor_bytes = memory_budget(
            self._report.memory_available_bytes + held,
            allowance.memory_bytes,
            allowance.reserved_bytes,
            default_floor_bytes(self._report.memory_total_bytes),
        )
        return Budget(
            memory_bytes=memory_bytes,
            floor_bytes=floor_bytes,
            round_s=allowance.round_s,
            transfer_bytes=allowance.transfer_bytes,
            uplink_bytes_per_s=_slower(
                allowance.uplink_bytes_per_s or self._link.uplink_bytes_per_s,
                allowance.max_upload_bytes_per_s,
            ),
            downlink_bytes_per_s=_slower(
                allowance.downlink_bytes_per_s or self._link.downlink_bytes_per_s,
                allowance.max_download_bytes_per_s,
            ),
        )

    def plan(self, work: Workload, deadline_s: float | None = None) -> Plan:
        """Decide the most this device can contribute now.

        Args:
            work: What the task asks.
            deadline_s: Length of a round; counts only where rates were measured, because an
                assumed speed is no reason to cut examples.

        Raises:
            NotFeasible: Nothing fits.
        """
        machine, budget = self.machine(measure=True), self.budget()
        if budget.round_s is None and machine.rates.origin == "measured":
            budget = replace(budget, round_s=deadline_s)
        return make_plan(work, machine, budget)

    def learn(
        self, plan: Plan, work: Workload, length: int, peak_bytes: int, step_s: float
    ) -> None:
        """Remember how a plan turned out, for the next one.

        Args:
            plan: That was carried out from the start of this process.
            work: It was made for.
            length: Tokens of the longest example that was really trained.
            peak_bytes: Measured peak memory.
            step_s: Measured time of a step.
        """
        trained = replace(plan.execution, length=length)
        cost = cost_of(work, self.machine(), plan.budget, trained)
        try:
            self._calibration.learn(self._model_key, cost, peak_bytes, step_s)
        except StorageError as error:
            log.warning("%s", error)


def _slower(link: float | None, cap: float | None) -> float | None:
    """Return the lower one of two rates, of which either may be unknown."""
    return min((rate for rate in (link, cap) if rate is not None), default=None)
