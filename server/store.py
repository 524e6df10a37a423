"""What the server remembers: the rows, and the interface of a place that keeps them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from edge_sdk.wire.messages import TaskSpec
from server.rounds import Round


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One task; ``seed`` is where all its randomness comes from."""

    name: str
    spec: TaskSpec
    seed: int
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """One enrolled device; ``token_hash`` is the SHA-256 of its token."""

    id: str
    name: str
    token_hash: str
    enrolled_at: float


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
    """

    task: str
    round_number: int
    device_id: str
    k: int
    seed: int
    adapter_version: int
    assigned_at: float
    download_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRow:
    """One accepted update: where its tensors are, and what the device reported."""

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
    """

    task: str
    version: int
    round_number: int
    digest: str
    size_bytes: int
    master_digest: str
    created_at: float


class Transaction(Protocol):
    """Reads, and in a writing transaction changes, that happen all or not at all."""

    def add_task(self, row: TaskRow) -> None:
        """Insert a task."""

    def task(self, name: str) -> TaskRow | None:
        """Return a task."""

    def task_names(self) -> list[str]:
        """Return the names of all tasks, sorted."""

    def add_enrolment_token(self, token_hash: str, now: float) -> None:
        """Insert an enrolment token."""

    def enrolment_token_hashes(self) -> list[str]:
        """Return the hash of every enrolment token."""

    def add_device(self, row: DeviceRow) -> None:
        """Insert a device."""

    def device(self, device_id: str) -> DeviceRow | None:
        """Return a device."""

    def device_by_token(self, token_hash: str) -> DeviceRow | None:
        """Return the device a token belongs to."""

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

    def shrink_assignment(self, row: AssignmentRow, k: int) -> None:
        """Change the sketch size of an assignment, and nothing else of it."""

    def add_download(self, row: AssignmentRow, size_bytes: int) -> None:
        """Count one download of the slice of an assignment."""

    def add_update(self, row: UpdateRow) -> None:
        """Insert an accepted update."""

    def accepted(self, task: str, number: int, device_id: str) -> UpdateRow | None:
        """Return the accepted update of a device in a round."""

    def updates(self, task: str, number: int) -> list[UpdateRow]:
        """Return the accepted updates of a round by device id."""

    def count_updates(self, task: str, number: int) -> int:
        """Return how many updates of a round are accepted."""

    def add_adapter(self, row: AdapterRow) -> None:
        """Insert an adapter version."""

    def adapter(self, task: str, version: int) -> AdapterRow | None:
        """Return an adapter version."""

    def adapters(self, task: str) -> list[AdapterRow]:
        """Return all adapter versions of a task, oldest first."""


class Store(Protocol):
    """Where rows live. Errors of the database are StorageError, a locked one is ServerBusy."""

    def read(self) -> AbstractContextManager[Transaction]:
        """Open a transaction that sees one consistent state."""

    def write(self) -> AbstractContextManager[Transaction]:
        """Open a transaction that is alone among writers and durable when it ends."""

    def close(self) -> None:
        """Let go of the database."""
