"""Close a round: freeze it when due, fold its updates, publish the next adapter version.

Each step can be repeated: a process that is killed anywhere starts again at the state the
database shows and comes to the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from edge_sdk.wire import payload
from edge_sdk.wire.messages import TaskSpec
from server.adapters import AdapterShelf, indices_of
from server.aggregation import WeightedUpdate, fold, update_weight
from server.blobs import BlobFolder
from server.lookup import find_adapter, find_round, find_task
from server.rounds import Round, close_round, next_state
from server.store import AdapterRow, AssignmentRow, Store, UpdateRow

log = logging.getLogger(__name__)


class Closing:
    """Moves rounds from open to closed.

    Args:
        store: Where rows are.
        blobs: Where updates are.
        shelf: Where adapters are.
        clock: Seconds since 1970.
    """

    def __init__(
        self, store: Store, blobs: BlobFolder, shelf: AdapterShelf, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._shelf = shelf
        self._clock = clock

    def advance(self, task: str, number: int) -> None:
        """Do what is due for one round: prolong, freeze and aggregate, or nothing.

        Raises:
            StorageError: A tensor file cannot be read or written; the round stays as it is.
        """
        if self.freeze_if_due(task, number).state == "closing":
            self.publish(task, number, self.aggregate(task, number))

    def freeze_if_due(self, task: str, number: int) -> Round:
        """Move an open round to the state it must have now; the first transaction of closing."""
        now = self._clock()
        with self._store.write() as tx:
            policy = find_task(tx, task).spec.policy
            before = find_round(tx, task, number)
            after = next_state(before, tx.count_updates(task, number), policy, now)
            if after != before:
                tx.update_round(after)
        if after != before:
            log.info("round %d of %s: %s", number, task, _change(after))
        return after

    def aggregate(self, task: str, number: int) -> AdapterRow:
        """Write the next adapter version of a frozen round; no table knows it yet."""
        with self._store.read() as tx:
            spec = find_task(tx, task).spec
            assignments = {row.device_id: row for row in tx.assignments(task, number)}
            updates = tx.updates(task, number)
            work = [(row, assignments[row.device_id]) for row in updates]
            before = find_adapter(tx, task, work[0][1].adapter_version)
        after = fold(
            self._shelf.read(spec.adapter, before),
            spec.adapter,
            spec.policy.server_lr,
            self._read_updates(spec, work),
        )
        return self._shelf.write(
            spec.adapter,
            after,
            task=task,
            version=before.version + 1,
            round_number=number,
            now=self._clock(),
        )

    def publish(self, task: str, number: int, row: AdapterRow) -> None:
        """Close a frozen round with its adapter version; the second transaction of closing."""
        with self._store.write() as tx:
            current = find_round(tx, task, number)
            if current.state != "closing":
                return  # another process was faster, with the same bytes
            tx.add_adapter(row)
            tx.update_round(close_round(current, row.version))
        log.info("round %d of %s: closed with adapter version %d", number, task, row.version)

    def _read_updates(
        self, spec: TaskSpec, work: list[tuple[UpdateRow, AssignmentRow]]
    ) -> Iterator[WeightedUpdate]:
        """Read one update at a time, in the order of the device ids."""
        for update, assignment in work:
            body = self._blobs.read(update.digest)
            shapes = payload.adapter_shapes(spec.adapter, assignment.k)
            arrays, _ = payload.decode(body, shapes, spec.adapter.wire_dtype)
            yield WeightedUpdate(
                arrays=arrays,
                indices=indices_of(spec.adapter, assignment),
                weight=update_weight(spec.policy.weighting, update.examples),
            )


def _change(after: Round) -> str:
    return "frozen" if after.state == "closing" else "prolonged, too few updates at the deadline"
