"""Made-up devices that go on whatever happens to their server, and what must come out of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.errors import RoundClosed, ServerBusy, ServerUnreachable, StorageError
from edge_sdk.identity.identity import Identity
from edge_sdk.wire.messages import CheckInReply
from edge_sdk.wire.payload import adapter_shapes, decode
from edge_sdk.wire.task import TaskSpec
from server.rounds.adapters import AdapterShelf
from server.rounds.tasks import create_task
from server.settings.settings import Settings
from server.state import open_state
from server.storage.store import AdapterRow, UpdateRow
from tests.numpy_device import NumpyDevice, enrol, made_up_update, wait_for
from tests.processes import ServerProcess
from tests.server.tasks import SEED, Site, ready

PASSING = (ServerUnreachable, ServerBusy, StorageError, RoundClosed)
"""What a device may be told while its server is disturbed; it tries again."""

_SKETCH_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Member:
    """One device of a fleet."""

    id: str
    identity: Identity
    k: int


@dataclass(frozen=True)
class Fleet:
    """A task and its devices."""

    spec: TaskSpec
    members: list[Member]

    @contextmanager
    def at_work(self, addresses: Sequence[str], pause_s: float = 0.02):
        """Let every device work in a thread until the task is finished, or the block ends."""
        work = FleetAtWork(self, addresses, pause_s)
        try:
            yield work
        finally:
            work.stop()

    def expected(self, folder: Path) -> list[AdapterRow]:
        """What one server makes of this fleet that nothing disturbs, without any HTTP."""
        site = Site(folder)
        site.add_task(self.spec)
        for member in self.members:
            site.add_device(member.id)
        for _ in range(self.spec.policy.rounds):
            for member in self.members:
                _train_once(site, self.spec, member)
            site.clock.now += self.spec.policy.deadline_s
            site.advance()
        with site.store.read() as tx:
            rows = tx.adapters(self.spec.name)
        site.store.close()
        return rows

    def check(self, settings: Settings, folder: Path) -> None:
        """Every update of every round is counted once, and every version is as it must be."""
        store, blobs = open_state(settings)
        with store.read() as tx:
            versions = tx.adapters(self.spec.name)
            rounds = tx.rounds(self.spec.name)
            updates = [tx.updates(self.spec.name, row.number) for row in rounds]
        assert {row.state for row in rounds} == {"closed"}
        assert [row.adapter_version for row in rounds] == [row.number for row in rounds]
        everybody = sorted(member.id for member in self.members)
        assert [_senders(rows) for rows in updates] == [everybody] * len(rounds)
        for rows in updates:
            for row in rows:
                assert len(blobs.read(row.digest)) == row.size_bytes
        expected = self.expected(folder)
        assert [row.master_digest for row in versions] == [row.master_digest for row in expected]
        assert len({row.digest for row in versions}) == len(rounds) + 1, "every round moved it"
        store.close()


def make_fleet(server: ServerProcess, settings: Settings, spec: TaskSpec, size: int) -> Fleet:
    """Make the task on a running server and enrol its devices."""
    store, blobs = open_state(settings)
    create_task(store, AdapterShelf(blobs), spec, SEED, 0.0)
    store.close()
    members = [
        Member(device_id, identity, _SKETCH_SIZES[i % len(_SKETCH_SIZES)])
        for i, (device_id, identity) in enumerate(enrol(server, size))
    ]
    return Fleet(spec, members)


class FleetAtWork:
    """The threads of a fleet.

    Args:
        fleet: Whose devices work.
        addresses: Of the servers; a device that one fails goes to the next.
        pause_s: Between two looks of a device.
    """

    def __init__(self, fleet: Fleet, addresses: Sequence[str], pause_s: float) -> None:
        self._spec = fleet.spec
        self._addresses = addresses
        self._pause_s = pause_s
        self._is_stopping = threading.Event()
        self._failures: list[BaseException] = []
        self.refusals: list[Exception] = []
        """What devices were told while their server was disturbed."""
        self.closed_rounds = 0
        self._threads = [
            threading.Thread(target=self._work, args=(member, i), daemon=True)
            for i, member in enumerate(fleet.members)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_over(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def finish(self, timeout_s: float = 60.0) -> None:
        """Wait until the task is finished, as every device was told."""
        wait_for(lambda: self.is_over or self._failures, timeout_s)
        assert self._failures == []

    def stop(self) -> None:
        """End the threads, wherever they are."""
        self._is_stopping.set()
        for thread in self._threads:
            thread.join(30)

    def _work(self, member: Member, turn: int) -> None:
        devices: dict[str, NumpyDevice] = {}
        while not self._is_stopping.is_set():
            address = self._addresses[turn % len(self._addresses)]
            try:
                if address not in devices:
                    devices[address] = NumpyDevice(
                        address, member.identity, self._spec.name, member.k
                    )
                if self._take_part(devices[address]).state == "finished":
                    return
            except PASSING as error:
                self.refusals.append(error)
                turn += 1
            except BaseException as error:
                self._failures.append(error)
                return
            self._is_stopping.wait(self._pause_s)

    def _take_part(self, device: NumpyDevice) -> CheckInReply:
        """Train in one round, if there is work, and see it closed.

        Looking at the round, unlike checking in, leaves it to the closer to freeze it.
        """
        reply = device.check_in()
        if reply.assignment is not None:
            body = device.made_up_update(reply.assignment, device.fetch(reply.assignment))
            device.submit(reply.assignment, body)
        number = reply.round_number
        while device.transport.round_status(self._spec.name, number).state != "closed":
            if self._is_stopping.wait(self._pause_s):
                return reply
        self.closed_rounds = max(self.closed_rounds, number)
        return reply


def _train_once(site: Site, spec: TaskSpec, member: Member) -> None:
    work = site.coordinator.check_in(member.id, spec.name, ready(member.k)).assignment
    body = site.coordinator.slice_for(member.id, spec.name, work.round_number)
    slices = decode(body, adapter_shapes(spec.adapter, work.k), spec.adapter.wire_dtype)[0]
    update = made_up_update(spec, member.k, work, slices)
    site.submit(member.id, spec.name, work.round_number, update)


def _senders(rows: list[UpdateRow]) -> list[str]:
    return [row.device_id for row in rows]
