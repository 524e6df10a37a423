"""One device of our server that trains nothing, as a process of its own: it lives for all rounds.

It does what ``edge_sdk.rounds.round_loop`` does with the network, and waits as long as that waits.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np

from edge_sdk.errors import RoundClosed, ServerBusy, ServerUnreachable
from edge_sdk.identity.identity import Identity
from edge_sdk.network.transport import Transport
from edge_sdk.rounds.membership import FIRST_OUTAGE_WAIT_S
from edge_sdk.wire.messages import Assignment, CheckIn, UpdateReport, encode_message
from edge_sdk.wire.payload import adapter_shapes, decode
from edge_sdk.wire.task import TaskSpec
from edge_sdk.wire.update_body import encode_update

STEP = np.float32(1e-3)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a device is told on its standard input.

    Attributes:
        identity: It is enrolled with.
        task: It takes part in.
        k: Ranks it can afford.
        position: In the fleet; no two devices send the same update.
        think_s: Seconds it takes for its training in one of the rounds.
        think_in_round: Which one; 0 is none.
    """

    identity: Identity
    task: str
    k: int
    position: int
    think_s: float
    think_in_round: int


def main() -> int:
    """Take part until the task is finished."""
    role = msgspec.json.decode(sys.stdin.buffer.read(), type=Role)
    transport = Transport(role.identity.server, role.identity)
    task = _patiently(lambda: transport.task(role.task))
    ready = CheckIn(base_digest=task.base.digest, affordable_k=role.k, examples=1)
    while True:
        reply = _patiently(lambda: transport.check_in(role.task, ready))
        if reply.state == "finished":
            return 0
        if reply.assignment is None:
            time.sleep(reply.retry_after_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            continue
        try:
            _take_part(transport, task, reply.assignment, role)
        except RoundClosed:
            continue


def _take_part(transport: Transport, task: TaskSpec, work: Assignment, role: Role) -> None:
    body = _patiently(lambda: transport.slice_body(task, work.round_number, work.k))
    shapes = adapter_shapes(task.adapter, work.k)
    slices, _ = decode(body, shapes, task.adapter.wire_dtype)
    if work.round_number == role.think_in_round:
        time.sleep(role.think_s)
    step = STEP * np.float32(1 + role.position)
    update = {name: np.full_like(array, step) for name, array in slices.items()}
    report = UpdateReport(examples=1, loss=0.0, seconds=0.0, peak_rss_bytes=0)
    sent = encode_update(update, task, work.seed, encode_message(report))
    _patiently(lambda: transport.submit(task.name, work.round_number, sent))


def _patiently(exchange: Callable[[], _Answer]) -> _Answer:
    while True:
        try:
            return exchange()
        except (ServerUnreachable, ServerBusy):
            time.sleep(FIRST_OUTAGE_WAIT_S * random.uniform(0.5, 1.0))  # noqa: S311 - jitter


if __name__ == "__main__":
    sys.exit(main())
