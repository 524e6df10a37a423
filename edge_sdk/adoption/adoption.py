"""Adopt adapter versions on a device: judge each, tell how it did, and train a personal one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge_sdk.adoption.adapter_source import AdapterSource
from edge_sdk.adoption.base_alone import base_alone
from edge_sdk.adoption.gate import Verdict, judge
from edge_sdk.adoption.kept_adapters import Kept, KeptAdapters
from edge_sdk.adoption.personal import train_personal
from edge_sdk.errors import (
    AdapterError,
    EdgeError,
    LossDiverged,
    NotFeasible,
    OutOfMemory,
)
from edge_sdk.text.held_out import MOST_SCORED
from edge_sdk.wire.messages import MAX_LOSS, EvaluationReport
from edge_sdk.wire.payload import Arrays

if TYPE_CHECKING:
    from edge_sdk.training.participation import Participation

log = logging.getLogger("edge_sdk")


class Adoption:
    """What becomes of the versions that the server gives to this device.

    Args:
        part: The task, its examples and the loaded base.
        source: Where versions come from.
        kept: Where they stay.
        report: Tells the server how a version did.
        is_personal: Whether this device has an adapter of its own.
    """

    def __init__(
        self,
        part: Participation,
        source: AdapterSource,
        kept: KeptAdapters,
        report: Callable[[EvaluationReport], None],
        is_personal: bool,
    ) -> None:
        self._part = part
        self._source = source
        self._kept = kept
        self._report = report
        self._is_personal = is_personal
        self._is_mended = False

    def look(self) -> None:
        """Adopt the version the server gives to this device now, if it is new and does not lose.

        What goes wrong is logged, and the adapter in use stays: taking part goes on without it.
        """
        try:
            self._mend()
            if not self._knows(self._source.version(self._part.task)):
                self._meet()
            if self._is_personal:
                self._follow()
        except EdgeError as error:
            log.warning("the adapter in use stays: %s", error)

    def _knows(self, version: int) -> bool:
        record = self._kept.record
        is_in_use = record.current is not None and record.current.version == version
        return is_in_use or version == record.judged

    def _mend(self) -> None:
        """Set aside what was damaged since the last time, before anything is built on it."""
        if self._is_mended:
            return
        self._kept.mend()
        for kept in self._kept.record.kept:
            self._read(kept)
        self._is_mended = True

    def _meet(self) -> None:
        """Fetch a version and use it, or not."""
        found = self._source.fetch(self._part.task)
        version, current = found.manifest.version, self._current()
        spec = self._part.task.adapter
        if current is not None and version < current[0].version:
            log.info("version %d is in use: the operator took a later one back", version)
            self._kept.accept(version, found.arrays, found.signed)
            return
        verdict = self._judge(current[1] if current else base_alone(spec), found.arrays)
        if verdict is not None:
            self._tell(version, verdict)
        if verdict is None or verdict.is_accepted:
            self._kept.accept(version, found.arrays, found.signed)
        else:
            self._kept.reject(version)
        log.info("version %d is %s", version, _outcome(verdict))

    def _follow(self) -> None:
        """Train the personal adapter towards the version in use, once for each."""
        current, own = self._current(), self._kept.record.personal
        if current is None or (own is not None and own.version == current[0].version):
            return
        kept, towards = current
        try:
            made = self._trained(kept.version, towards)
            verdict = self._judge(towards, made)
        except (NotFeasible, OutOfMemory) as error:
            log.warning("no personal adapter here, the global one alone is used: %s", error)
            self._is_personal = False
            return
        self._kept.keep_personal(kept.version, made, verdict is None or verdict.is_accepted)
        log.info("the personal adapter is %s", _outcome(verdict))

    def _trained(self, version: int, towards: Arrays) -> Arrays:
        """Return the personal adapter after training towards a version."""
        plan, trainer = self._part.personal_plan(), self._part.trainer
        start = self._personal() or towards
        try:
            return train_personal(trainer, plan, self._part.task, version, start, towards)
        except LossDiverged as error:
            log.warning("the personal adapter begins anew: %s", error)
            return towards

    def _judge(self, before: Arrays, after: Arrays) -> Verdict | None:
        """Compare two adapters; None where nothing is held out.

        Raises:
            OutOfMemory: There is none to try them in.
        """
        trainer, plan = self._part.trainer, self._part.plan
        examples = trainer.held_out[:MOST_SCORED]
        if not examples:
            return None
        old = trainer.scores(plan, before, examples)
        return judge(old, trainer.scores(plan, after, examples))

    def _tell(self, version: int, verdict: Verdict) -> None:
        report = EvaluationReport(
            version=version,
            examples=verdict.examples,
            loss_before=_bounded(verdict.loss_before),
            loss_after=_bounded(verdict.loss_after),
            accepted=verdict.is_accepted,
            accuracy=verdict.accuracy_after,
        )
        try:
            self._report(report)
        except EdgeError as error:
            log.warning("the server was not told how version %d did: %s", version, error)

    def _current(self) -> tuple[Kept, Arrays] | None:
        """Return the global version in use; one that is damaged is set aside."""
        while (kept := self._kept.record.current) is not None:
            arrays = self._read(kept)
            if arrays is not None:
                return kept, arrays
        return None

    def _personal(self) -> Arrays | None:
        kept = self._kept.record.personal
        return None if kept is None else self._read(kept)

    def _read(self, kept: Kept) -> Arrays | None:
        try:
            return self._kept.read(kept)
        except AdapterError as error:
            log.warning("%s; it is set aside", error)
            self._kept.drop(kept)
            return None


def _outcome(verdict: Verdict | None) -> str:
    if verdict is None:
        return "in use, untried"
    change = f"loss {verdict.loss_before:.4f} -> {verdict.loss_after:.4f}"
    if verdict.accuracy_before is not None and verdict.accuracy_after is not None:
        change += f", accuracy {verdict.accuracy_before:.1%} -> {verdict.accuracy_after:.1%}"
    said = "in use" if verdict.is_accepted else "not used, it loses"
    return f"{said}: {change} on {verdict.examples} held-out examples"


def _bounded(loss: float) -> float:
    return min(loss, MAX_LOSS) if math.isfinite(loss) else MAX_LOSS
