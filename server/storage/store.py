"""What the server remembers: the rows, and the interface of a place that keeps them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from edge_sdk.wire.task import TaskSpec
from server.rules.rounds import Round
from server.storage.access_store import AccessTransaction
from server.storage.evaluation_store import EvaluationTransaction
from server.storage.fleet_store import FleetTransaction
from server.storage.reference_store import ReferenceTransaction
from server.storage.registry_store import RegistryTransaction


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One task.

    Attributes:
        name: As in its spec.
        spec: What its devices agree on.
        seed: Where all its randomness comes from.
        created_at: Seconds since 1970.
        is_relayed: Whether it is another server's, to which this one sends the sum of each round.
    """

    name: str
    spec: TaskSpec
    seed: int
    created_at: float
    is_relayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentRow:
    """The work of one device in one round, as it was handed out last.

    Attributes:
        task: Name of the task.
        round_number: From 1.
        device_id: Who got it.
        k: Sketch size; within the round it may shrink until an update is accepted.
        seed: Of the sketch; with k it says which ranks, drawn again whenever they are needed.
        adapter_version: The version its slice is cut from.
        assigned_at: Seconds since 1970.
        download_bytes: Bytes of all slices handed out for it, of every size it had.
        drawn_from: Where its ranks begin in the task's balanced draws; None if independent.
        members: Devices whose sum a relay may send for it; None is one device's own update.
    """

    task: str
    round_number: int
    device_id: str
    k: int
    seed: int
    adapter_version: int
    assigned_at: float
    download_bytes: int = 0
    drawn_from: int | None = None
    members: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRow:
    """One accepted update: where its tensors are, and what the device reported.

    Attributes:
        task: Name of the task.
        round_number: The round its work was assigned in.
        device_id: Who sent it.
        digest: Blob of its tensors.
        size_bytes: Of that blob.
        examples: As reported, like the next three.
        loss: Mean training loss.
        seconds: Wall time of the local steps.
        peak_rss_bytes: Peak memory of the device's process.
        accepted_at: Seconds since 1970.
        counted_in: The round whose mean it is part of; a later one if it came late.
        staleness: Adapter versions it is behind that round.
        norm: Root mean square of its numbers.
        quarantine: Why it is kept, but no part of any mean; None if nothing speaks against it.
        members: Devices it is of: 1, or those of a relay's sum.
        weight: What all members of a relay's sum weigh; None is worked out for one device.
        rank_members: How many members trained each rank of each layer, ``(layers, r)`` unsigned
            32-bit numbers, little-endian; None if the assignment tells which ranks.
    """

    task: str
    round_number: int
    device_id: str
    digest: str
    size_bytes: int
    examples: int
    loss: float
    seconds: float
    peak_rss_bytes: int
    accepted_at: float
    counted_in: int
    staleness: int = 0
    norm: float = 0.0
    quarantine: str | None = None
    members: int = 1
    weight: float | None = None
    rank_members: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRow:
    """One version of a global adapter.

    Attributes:
        task: Name of the task.
        version: 0 is the initial adapter.
        round_number: The round that made it; 0 for the initial one.
        digest: Blob that devices download, in the task's number format.
        size_bytes: Of that blob.
        master_digest: Blob with the float32 numbers the next round starts from.
        created_at: Seconds since 1970.
        optimizer_digest: Blob with the server optimizer's state after that round, if it has one.
    """

    task: str
    version: int
    round_number: int
    digest: str
    size_bytes: int
    master_digest: str
    created_at: float
    optimizer_digest: str | None = None


class RoundTransaction(Protocol):
    """Where every task stands."""

    def add_task(self, row: TaskRow) -> None:
        """Insert a task."""

    def task(self, name: str) -> TaskRow | None:
        """Return a task."""

    def task_names(self) -> list[str]:
        """Return the names of all tasks, sorted."""

    def take_draws(self, task: str, count: int) -> int:
        """Return how many ranks the task's balanced draws have given out, and add ``count``."""

    def add_round(self, row: Round) -> None:
        """Insert a round."""

    def update_round(self, row: Round) -> None:
        """Overwrite a round."""

    def round(self, task: str, number: int) -> Round | None:
        """Return a round."""

    def last_round(self, task: str) -> Round | None:
        """Return the latest round of a task."""

    def rounds(self, task: str) -> list[Round]:
        """Return all rounds of a task by number."""

    def unfinished_rounds(self) -> list[Round]:
        """Return every round of any task that is not closed."""

    def add_assignment(self, row: AssignmentRow) -> None:
        """Insert an assignment."""

    def assignment(self, task: str, number: int, device_id: str) -> AssignmentRow | None:
        """Return the assignment of a device in a round."""

    def assignments(self, task: str, number: int) -> list[AssignmentRow]:
        """Return the assignments of a round by device id."""

    def count_assignments(self, task: str, number: int) -> int:
        """Return how many devices were given work in a round, those behind relays too."""

    def count_seats(self, task: str, number: int, stretch_at: float) -> int:
        """Return how many places in the cohort of a round are taken; a relay takes several.

        A device gives its place up if it let a whole stretch of a prolonged round pass without an
        update, or a cohort of dropped devices would block the task for ever; and if its update is
        quarantined. Its assignment stays valid.

        Args:
            task: Name of the task.
            number: Of the round.
            stretch_at: When the round was opened or last prolonged.
        """

    def count_reserved(self, task: str, number: int, most: int) -> int:
        """Return how many places relays may still ask for that have no work in a round yet.

        Args:
            task: Name of the task.
            number: Of the round.
            most: Relays that speak for more devices than this are left out.
        """

    def shrink_assignment(self, row: AssignmentRow, k: int) -> None:
        """Change the sketch size of an assignment, and nothing else of it."""

    def add_download(self, row: AssignmentRow, size_bytes: int) -> None:
        """Count one download of the slice of an assignment."""

    def add_update(self, row: UpdateRow) -> None:
        """Insert an accepted update."""

    def accepted(self, task: str, number: int, device_id: str) -> UpdateRow | None:
        """Return the accepted update of a device in a round."""

    def updates(self, task: str, number: int) -> list[UpdateRow]:
        """Return the updates counted in a round, quarantined ones too.

        They come by device id, those of older rounds after those of newer ones.
        """

    def count_updates(self, task: str, number: int) -> int:
        """Return how many devices' updates are part of a round's mean."""

    def mean_losses(self, task: str) -> dict[int, tuple[int, float]]:
        """Return, for rounds with updates in their mean, how many devices and their mean loss."""

    def quarantine(self, row: UpdateRow, reason: str) -> None:
        """Take an update out of the mean of its round."""

    def participation(self, task: str) -> dict[str, tuple[int, int]]:
        """Return how many accepted updates a device has, and the round of its first one."""

    def add_adapter(self, row: AdapterRow) -> None:
        """Insert an adapter version."""

    def adapter(self, task: str, version: int) -> AdapterRow | None:
        """Return an adapter version."""

    def last_adapter(self, task: str) -> AdapterRow | None:
        """Return the latest adapter version of a task."""

    def adapters(self, task: str) -> list[AdapterRow]:
        """Return all adapter versions of a task, oldest first."""


class Transaction(
    RoundTransaction,
    ReferenceTransaction,
    RegistryTransaction,
    AccessTransaction,
    FleetTransaction,
    EvaluationTransaction,
    Protocol,
):
    """Reads, and in a writing transaction changes, that happen all or not at all."""


class Store(Protocol):
    """Where rows live. Errors of the database are StorageError, a locked one is ServerBusy."""

    def read(self) -> AbstractContextManager[Transaction]:
        """Open a transaction that sees one consistent state."""

    def write(self) -> AbstractContextManager[Transaction]:
        """Open a transaction that is alone among writers and durable when it ends."""

    def exclusive(self, name: str) -> AbstractContextManager[bool]:
        """Hold a name, if nobody else does, until the block ends or this process dies.

        The block is told whether it holds the name. What it does must be safe all the same: a
        database that restarts forgets who held what.
        """

    def check(self) -> None:
        """Return if the database answers and has the tables of this release.

        Raises:
            ServerBusy: It cannot be reached now.
            StorageError: It refuses, or another release changed its tables.
        """

    def close(self) -> None:
        """Let go of the database."""
