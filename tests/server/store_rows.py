"""One row of each kind, that belong together, for the tests of the store."""

from __future__ import annotations

from server.rules.rounds import open_round
from server.storage.access_store import DeviceRow
from server.storage.store import AdapterRow, AssignmentRow, Store, TaskRow, UpdateRow
from tests.server.tasks import tiny_spec

SPEC = tiny_spec()
TASK = TaskRow(name="tiny", spec=SPEC, seed=2**53 - 1, created_at=1.5)
ADAPTER = AdapterRow(
    task="tiny",
    version=0,
    round_number=0,
    digest="d" * 64,
    size_bytes=2**40,
    master_digest="m" * 64,
    created_at=3.5,
)
ROUND = open_round("tiny", 1, SPEC.policy, 4.5)
ASSIGNMENT = AssignmentRow(
    task="tiny",
    round_number=1,
    device_id="a",
    k=2,
    seed=2**53 - 1,
    adapter_version=0,
    assigned_at=5.5,
)
UPDATE = UpdateRow(
    task="tiny",
    round_number=1,
    device_id="a",
    digest="e" * 64,
    size_bytes=2**33,
    examples=2**53,
    loss=0.1,
    seconds=0.2,
    peak_rss_bytes=2**53,
    accepted_at=6.5,
    counted_in=1,
)


def device_row(device_id: str, name: str = "Ann's phone ☎") -> DeviceRow:
    """A device with this id; whatever must be unique is made from it."""
    return DeviceRow(id=device_id, name=name, public_key=device_id.ljust(64, "0"), enrolled_at=2.5)


DEVICE = device_row("a")


def fill(store: Store) -> None:
    """Insert them all."""
    with store.write() as tx:
        tx.add_task(TASK)
        tx.add_device(DEVICE)
        tx.add_adapter(ADAPTER)
        tx.add_round(ROUND)
        tx.add_assignment(ASSIGNMENT)
        tx.add_update(UPDATE)
