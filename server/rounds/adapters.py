"""The global adapter's versions: written as blobs, read back, cut into slices."""

from __future__ import annotations

import threading

from edge_sdk.sketch import Indices
from edge_sdk.wire import payload
from edge_sdk.wire.messages import SliceRanks, encode_message
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec, TaskSpec
from server.aggregation.weighted_mean import cut_slice
from server.blobs.blobs import Blobs
from server.methods.method import Turn
from server.methods.sketched import sketch
from server.storage.store import AdapterRow, AssignmentRow, TaskRow


class AdapterShelf:
    """Writes adapter versions and keeps the last one that was read in memory.

    Args:
        blobs: Where the tensor files are.
    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()
        self._last: tuple[str, Arrays] = ("", {})

    def write(
        self,
        spec: AdapterSpec,
        adapter: Arrays,
        *,
        task: str,
        version: int,
        round_number: int,
        now: float,
    ) -> AdapterRow:
        """Store one version durably and return its row, not yet in any table.

        The master copy is float32 also when the task says bf16: a mean update is often smaller
        than the spacing of bf16 numbers, and would be rounded away round after round.
        """
        body = payload.encode(adapter, spec.wire_dtype)
        digest = self._blobs.put(body)
        master = digest
        if spec.wire_dtype != "fp32":
            master = self._blobs.put(payload.encode(adapter, "fp32"))
        return AdapterRow(
            task=task,
            version=version,
            round_number=round_number,
            digest=digest,
            size_bytes=len(body),
            master_digest=master,
            created_at=now,
        )

    def read(self, spec: AdapterSpec, row: AdapterRow) -> Arrays:
        """Return one version at rank r, float32; callers do not change the arrays.

        Raises:
            StorageError: The blob is missing or damaged.
        """
        with self._lock:
            digest, arrays = self._last
            if digest != row.master_digest:
                body = self._blobs.read(row.master_digest)
                arrays, _ = payload.decode(body, payload.adapter_shapes(spec, spec.r), "fp32")
                self._last = (row.master_digest, arrays)
            return arrays

    def slice(self, task: TaskRow, row: AdapterRow, assignment: AssignmentRow) -> bytes:
        """Return the tensor body of one assignment, cut from its adapter version."""
        spec = task.spec.adapter
        indices = indices_of(task.seed, task.spec, assignment)
        message = b""
        if task.spec.training.error_feedback:
            message = encode_message(SliceRanks(ranks=[ranks.tolist() for ranks in indices]))
        arrays = cut_slice(self.read(spec, row), spec, indices)
        return payload.encode(arrays, spec.wire_dtype, message)


def indices_of(task_seed: int, spec: TaskSpec, assignment: AssignmentRow) -> list[Indices]:
    """Draw the ranks of an assignment again from its record, one index set per layer.

    Args:
        task_seed: Of the task.
        spec: Of the task.
        assignment: As it is stored: its own seed says which ranks, or, if the task balances its
            draws, where they begin in them.
    """
    turn = Turn(seed=assignment.seed, task_seed=task_seed, drawn_from=assignment.drawn_from)
    return sketch(spec, assignment.k, turn)
