"""One round of a fleet in virtual time: who gets work, whose update arrives when, and the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError
from edge_sdk.wire.task import TaskSpec
from simulation.fleet import Fleet, Numbers
from simulation.work import Learner, Server, Work

_WAIT_S = 600.0  # how long the server waits where nobody is there
_MOST_STRETCHES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What happened in a round.

    Attributes:
        began_at: Virtual seconds.
        ended_at: Virtual seconds.
        assigned: Devices that got work.
        accepted: Updates in the mean.
        dropped: Devices that were lost, or left before they were done.
        late: Devices whose update came after the end.
        uplink_bytes: Of all updates that arrived in time.
        downlink_bytes: Of all that got work.
        loss: Mean training loss.
        works: Of the accepted updates.
    """

    began_at: float
    ended_at: float
    assigned: int
    accepted: int
    dropped: int
    late: int
    uplink_bytes: int
    downlink_bytes: int
    loss: float
    works: list[Work]


def play_round(
    server: Server, learner: Learner, fleet: Fleet, number: int, now: float, draw: int
) -> tuple[Round, int]:
    """Play one round up to its end, but for the fold.

    A round ends with its quorum, or at its deadline if the updates suffice; else it is prolonged,
    and places of devices that sent nothing go to others. Only what is accepted is really trained.

    Args:
        server: Its open round is this one.
        learner: Trains.
        fleet: Who there is.
        number: Of the round, from 1.
        now: Virtual seconds.
        draw: How many cohorts the run has drawn so far.

    Returns:
        What happened, and how many cohorts were drawn by then.

    Raises:
        ConfigError: However often the round is prolonged, too few updates come.
        LossDiverged: A device's step size is too large.
    """
    policy = server.spec.policy
    began_at, works = now, list[Work]()
    arrivals: list[tuple[float, Work]] = []
    dropped = 0
    for _ in range(_MOST_STRETCHES):
        busy = np.array([work.device for work in works], dtype=np.int64)
        waiting = sum(at > now for at, _ in arrivals)
        places = policy.cohort_size - waiting - sum(at <= now for at, _ in arrivals)
        chosen = fleet.ready(now, busy, places, draw)
        given = [server.give_work(int(x), int(fleet.k[x]), now) for x in chosen]
        works += given
        done_at, is_lost = _arrivals(fleet, server.spec, given, now, draw)
        draw += 1
        dropped += int(is_lost.sum())
        arrivals += [
            (at, work)
            for at, work, lost in zip(done_at.tolist(), given, is_lost.tolist(), strict=True)
            if not lost
        ]
        arrivals.sort(key=lambda x: (x[0], x[1].device))
        deadline = now + (policy.deadline_s if works else _WAIT_S)
        in_time = [x for x in arrivals if x[0] <= deadline]
        if len(in_time) >= policy.quorum:
            in_time = in_time[: policy.quorum]
            return _end(server, learner, in_time, began_at, in_time[-1][0], works, dropped), draw
        now = deadline
        if len(in_time) >= policy.min_updates:
            return _end(server, learner, in_time, began_at, now, works, dropped), draw
    raise ConfigError(
        f"round {number} was prolonged {_MOST_STRETCHES} times without min_updates="
        f"{policy.min_updates}: deadline_s={policy.deadline_s:g} is too short for this fleet, or "
        "too few of it are ever there"
    )


def _arrivals(
    fleet: Fleet, spec: TaskSpec, works: list[Work], now: float, draw: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return when each update would arrive, and whether it never does."""
    devices: Numbers = np.array([work.device for work in works], dtype=np.int64)
    downlink = np.array([work.downlink_bytes for work in works], dtype=np.float64)
    uplink = np.array([_update_bytes(spec, work) for work in works], dtype=np.float64)
    took = downlink / fleet.downlink[devices] + uplink / fleet.uplink[devices]
    took += spec.training.local_steps * fleet.step_s[devices]
    leaves = took > fleet.left_s(now)[devices]
    return now + took, fleet.is_lost(devices, draw) | leaves


def _update_bytes(spec: TaskSpec, work: Work) -> int:
    """Return about what an update has: its time on the line is needed before it is trained."""
    share = {"wire": 1.0, "float16": 0.5, "int8": 0.26, "int4": 0.13}
    sent = [x.nbytes for name, x in work.slices.items() if _travels(name, work)]
    return int(share[spec.training.update_encoding] * sum(sent))


def _travels(name: str, work: Work) -> bool:
    return not any(name.endswith(f".lora_{x}") for x in "AB" if x not in work.factors)


def _end(
    server: Server,
    learner: Learner,
    in_time: list[tuple[float, Work]],
    began_at: float,
    ended_at: float,
    works: list[Work],
    dropped: int,
) -> Round:
    uplink, losses = 0, []
    for at, work in in_time:
        lesson = learner.train(work, server.spec)
        uplink += server.take_update(work, lesson, at)
        losses.append(lesson.loss)
    return Round(
        began_at=began_at,
        ended_at=ended_at,
        assigned=len(works),
        accepted=len(in_time),
        dropped=dropped,
        late=len(works) - dropped - len(in_time),
        uplink_bytes=uplink,
        downlink_bytes=sum(work.downlink_bytes for work in works),
        loss=float(np.mean(losses)),
        works=[work for _, work in in_time],
    )
