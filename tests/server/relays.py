"""An upstream server and relays of it in one process, on one clock that a test turns."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.errors import ServerUnreachable
from edge_sdk.wire import payload
from edge_sdk.wire.messages import CheckIn
from edge_sdk.wire.task import TaskSpec
from server.aggregation.weighted_mean import WeightedUpdate
from server.rounds.adapters import indices_of
from server.rounds.relay import Relay
from server.storage.access_store import DeviceRow
from server.storage.lookup import find_counted, find_task
from tests.server.registries import Signer
from tests.server.tasks import Site, ready, update_body


class Upstream:
    """What a relay sees of its upstream server, without HTTP.

    Args:
        server: The upstream server.
        device_id: Of the relay there.
        relay_for: Devices it may speak for.
    """

    def __init__(self, server: Site, device_id: str, relay_for: int) -> None:
        self.server = server
        self.device_id = device_id
        self.relay_for = relay_for
        self.loses_receipts = False
        self.asked: list[str] = []
        self.sent: list[bytes] = []
        row = DeviceRow(
            id=device_id,
            name=device_id,
            public_key=device_id,
            enrolled_at=0.0,
            relay_for=relay_for,
        )
        with server.store.write() as tx:
            tx.add_device(row)

    def check_in(self, task: str, message: CheckIn):
        self.asked.append("check-in")
        return self.server.coordinator.check_in(self.device_id, task, message, self.relay_for)

    def slice_body(self, task: TaskSpec, round_number: int, k: int) -> bytes:
        self.asked.append("slice")
        return self.server.coordinator.slice_for(self.device_id, task.name, round_number)

    def submit(self, task: str, round_number: int, body: bytes):
        self.asked.append("update")
        self.sent.append(body)
        receipt = self.server.submit(self.device_id, task, round_number, body)
        if self.loses_receipts:
            raise ServerUnreachable("the answer was lost")
        return receipt

    def adapters(self, task: str):
        return self.server.coordinator.adapters(task)

    def adapter_body(self, task: TaskSpec, version: int, digest: str) -> bytes:
        info, stream = self.server.coordinator.adapter_body(task.name, version)
        return b"".join(stream(0, info.size_bytes))


class RelaySite:
    """A relay, its devices, and its place at an upstream server."""

    def __init__(
        self, folder: Path, server: Site, spec: TaskSpec, name: str, relay_for: int
    ) -> None:
        self.site = Site(folder, server.clock)
        self.upstream = Upstream(server, name, relay_for)
        self.spec = spec
        self.relay = self._new_relay()

    def step(self) -> float:
        return self.relay.step(self.upstream, self.spec)

    def restart(self) -> None:
        """Open its state anew, as after a kill."""
        self.site = self.site.restarted()
        self.relay = self._new_relay()

    def train(self, device: str, seed: int, k: int, **report):
        """Let a device of the site train in the running round; it joins if it is new."""
        return train(self.site, self.spec, device, seed, k, **report)

    def round(self, number: int):
        with self.site.store.read() as tx:
            return tx.round(self.spec.name, number)

    def _new_relay(self) -> Relay:
        site, publish = self.site, Signer(self.site).registry.catch_up
        return Relay(site.store, site.blobs, site.clock, publish, poll_s=2.0)


def train(site: Site, spec: TaskSpec, device: str, seed: int, k: int, **report):
    """Let a device of any server train, made known first if it is new."""
    with site.store.read() as tx:
        is_new = tx.device(device) is None
    if is_new:
        site.add_device(device)
    work = site.coordinator.check_in(device, spec.name, ready(k)).assignment
    assert work is not None
    site.submit(device, spec.name, work.round_number, update_body(spec, work.k, seed, **report))
    return work


def counted(site: Site, task: str, number: int, weigh) -> list[WeightedUpdate]:
    """The single updates that count in a round of a server, decoded by the test's own record."""
    with site.store.read() as tx:
        row = find_task(tx, task)
        work = [pair for pair in find_counted(tx, task, number) if pair[0].weight is None]
    spec = row.spec.adapter
    found = []
    for update, given in work:
        shapes = payload.adapter_shapes(spec, given.k)
        arrays, _ = payload.decode(site.blobs.read(update.digest), shapes, spec.wire_dtype)
        indices = indices_of(row.seed, row.spec, given)
        found.append(WeightedUpdate(arrays=arrays, indices=indices, weight=weigh(update)))
    return found
