"""A device without a model: speaks the protocol and sends updates made by arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from edge_sdk.identity.device_key import DeviceKey, make_private_key
from edge_sdk.identity.identity import Identity
from edge_sdk.network.transport import Transport
from edge_sdk.wire.messages import Assignment, CheckIn, CheckInReply, UpdateReport, encode_message
from edge_sdk.wire.payload import Arrays, adapter_shapes, decode
from edge_sdk.wire.task import TaskSpec
from edge_sdk.wire.update_body import encode_update
from tests.processes import ServerProcess

PATIENCE_S = 20.0


class NumpyDevice:
    """One enrolled device."""

    def __init__(
        self, address: str, identity: Identity, task: str, k: int, retries: int = 0
    ) -> None:
        self.k = k
        self.transport = Transport(address, identity, retries=retries)
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
        return made_up_update(self.task, self.k, work, slices)

    def body_of(self, update: Mapping[str, np.ndarray], **report: float) -> bytes:
        return _body_of(self.task, self.k, update, **report)

    def submit(self, work: Assignment, body: bytes) -> str:
        return self.transport.submit(self.task.name, work.round_number, body).digest


def enrol(server: ServerProcess, count: int) -> list[tuple[str, Identity]]:
    """Let new devices in; returns the id and the identity of each."""
    secret = server.command("token", "create")["enrolment_token"]
    identities = [enrol_one(server.address, secret, f"d{i}") for i in range(count)]
    return [(identity.device_id, identity) for identity in identities]


def enrol_one(address: str, enrolment_token: str, name: str) -> Identity:
    """Let one new device in, as ``edge-sdk join`` would, without a state folder."""
    private_key = make_private_key()
    enrolment = Transport(address).enrol(enrolment_token, name, DeviceKey(private_key))
    return Identity(
        server=address, device_id=enrolment.device_id, private_key=private_key, name=name
    )


def made_up_update(task: TaskSpec, k: int, work: Assignment, slices: Arrays) -> bytes:
    """What a device with k says it learned: always the same for the same work and slice."""
    rng = np.random.default_rng([work.seed, work.round_number])
    update = {
        name: 0.1 * np.sin(array) + rng.normal(scale=0.01, size=array.shape)
        for name, array in slices.items()
    }
    return _body_of(task, k, update)


def _body_of(task: TaskSpec, k: int, update: Mapping[str, np.ndarray], **report: float) -> bytes:
    facts = {"examples": 10 * k, "loss": 1.0, "seconds": 0.1, "peak_rss_bytes": 1}
    message = encode_message(UpdateReport(**{**facts, **report}))
    return encode_update(update, task, 0, message)


def wait_for(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Poll until a condition holds; fail if it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
