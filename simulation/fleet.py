"""A made-up fleet: what each device can do, when it is there, and when its work would arrive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulation.config import DeviceClass, FleetConfig

DAY_S = 86_400.0
_OF_CLASSES, _OF_HOURS, _OF_COHORTS, _OF_LOSSES = 0, 1, 2, 3

Numbers = NDArray[np.int64]


class Fleet:
    """All devices of a run, as arrays with one entry each.

    Args:
        config: What they are.
        count: How many.
        seed: Of the run.

    Attributes:
        k: Ranks that each can afford.
        step_s: Seconds of a local step.
        uplink: Bytes per second to the server.
        downlink: Bytes per second from the server.
    """

    def __init__(self, config: FleetConfig, count: int, seed: int) -> None:
        self._config = config
        self._seed = seed
        self.count = count
        classes = _dealt(config.classes, count, _rng(seed, _OF_CLASSES))
        self.k = np.array([x.k for x in config.classes])[classes]
        self.step_s = np.array([x.step_s for x in config.classes])[classes]
        self.uplink = np.array([x.uplink_bytes_per_s for x in config.classes])[classes]
        self.downlink = np.array([x.downlink_bytes_per_s for x in config.classes])[classes]
        self._from_s = _rng(seed, _OF_HOURS).uniform(0.0, DAY_S, count)

    def left_s(self, now: float) -> NDArray[np.float64]:
        """Return for how long each device stays available; 0 for one that is not."""
        if self._config.hours_per_day == 24:
            return np.full(self.count, np.inf)
        gone = (now - self._from_s) % DAY_S
        left: NDArray[np.float64] = np.maximum(0.0, self._config.hours_per_day * 3600 - gone)
        return left

    def ready(self, now: float, but: Numbers, places: int, draw: int) -> Numbers:
        """Return the devices that ask first for the free places of a round.

        Args:
            now: Virtual seconds.
            but: Devices that have work already.
            places: How many are free.
            draw: Number of this draw in the run.
        """
        is_there = self.left_s(now) > 0
        is_there[but] = False
        candidates = np.flatnonzero(is_there)
        order = _rng(self._seed, _OF_COHORTS, draw).permutation(len(candidates))
        chosen: Numbers = candidates[order[:places]]
        return chosen

    def is_lost(self, devices: Numbers, draw: int) -> NDArray[np.bool_]:
        """Say which of these devices are never heard of again."""
        chances = _rng(self._seed, _OF_LOSSES, draw).random(len(devices))
        lost: NDArray[np.bool_] = chances < self._config.dropout
        return lost


def _dealt(classes: Sequence[DeviceClass], count: int, rng: np.random.Generator) -> Numbers:
    """Deal the classes in their shares, as near as whole devices come, in random order."""
    ends = np.round(np.cumsum([x.share for x in classes]) * count).astype(int)
    dealt = np.searchsorted(ends, np.arange(count), side="right")
    shuffled: Numbers = rng.permutation(dealt)
    return shuffled


def _rng(seed: int, *part: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=part)))
