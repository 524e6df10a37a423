"""A device without a model: speaks the protocol and sends updates made by arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from edge_sdk.transport import Transport
from edge_sdk.wire.messages import (
    Assignment,
    CheckIn,
    CheckInReply,
    TaskSpec,
    UpdateReport,
    encode_message,
)
from edge_sdk.wire.payload import Arrays, adapter_shapes, decode, encode

PATIENCE_S = 20.0


class NumpyDevice:
    """One enrolled device."""

    def __init__(self, address: str, token: str, task: str, k: int, retries: int = 0) -> None:
        self.k = k
        self.transport = Transport(address, token, retries=retries)
        self.task: TaskSpec = self.transport.task(task)

    def check_in(self) -> CheckInReply:
        message = CheckIn(
            base_digest=self.task.base.digest, affordable_k=self.k, examples=10 * self.k
        )
        return self.transport.check_in(self.task.name, message)

    def wait_for_work(self) -> Assignment:
        """Check in until there is an assignment."""
        replies = [self.check_in()]
        wait_for(lambda: replies[-1].assignment or replies.append(self.check_in()))
        return replies[-1].assignment

    def wait_for_version(self, version: int) -> None:
        """Wait until a round has made this version of the adapter."""
        wait_for(lambda: len(self.transport.adapters(self.task.name)) > version)

    def fetch(self, work: Assignment) -> Arrays:
        body = self.transport.slice_body(self.task, work.round_number, work.k)
        shapes = adapter_shapes(self.task.adapter, work.k)
        return decode(body, shapes, self.task.adapter.wire_dtype)[0]

    def made_up_update(self, work: Assignment, slices: Arrays) -> bytes:
        """The same bytes for the same assignment and slice, different for any other."""
        rng = np.random.default_rng([work.seed, work.round_number])
        return self.body_of(
            {
                name: 0.1 * np.sin(array) + rng.normal(scale=0.01, size=array.shape)
                for name, array in slices.items()
            }
        )

    def body_of(self, update: Mapping[str, np.ndarray], **report: float) -> bytes:
        facts = {"examples": 10 * self.k, "loss": 1.0, "seconds": 0.1, "peak_rss_bytes": 1}
        message = encode_message(UpdateReport(**{**facts, **report}))
        return encode(update, self.task.adapter.wire_dtype, message)

    def submit(self, work: Assignment, body: bytes) -> str:
        return self.transport.submit(self.task.name, work.round_number, body).digest


def wait_for(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Poll until a condition holds; fail if it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
