"""Close a round: freeze it when due, combine its updates, publish the next adapter version.

Each step can be repeated: a process that is killed anywhere starts again at the state the
database shows and comes to the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from edge_sdk.wire.update_body import view_update
from server.aggregation.optimizer_state import State, decode_state, encode_state
from server.aggregation.weighted_mean import RunningSum, WeightedUpdate, late_weight, update_weight
from server.blobs.blobs import Blobs
from server.failpoints import hit
from server.methods.method import GlobalModel
from server.methods.sketched import move_by_mean
from server.rounds.adapters import AdapterShelf, indices_of
from server.rounds.partial_sum import encode_sum, read_sum
from server.rounds.standing import store_round
from server.rules.rounds import Round, close_round, next_state
from server.storage.lookup import find_adapter, find_counted, find_round, find_task
from server.storage.store import AdapterRow, AssignmentRow, Store, TaskRow, Transaction, UpdateRow

log = logging.getLogger(__name__)

Work = Sequence[tuple[UpdateRow, AssignmentRow]]
"""The updates of a round, each with the server's own record of what it is of."""


class Closing:
    """Moves rounds from open to closed.

    Args:
        store: Where rows are.
        blobs: Where updates are.
        shelf: Where adapters are.
        clock: Seconds since 1970.
    """

    def __init__(
        self, store: Store, blobs: Blobs, shelf: AdapterShelf, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._shelf = shelf
        self._clock = clock

    def advance(self, task: str, number: int) -> None:
        """Do what is due for one round: prolong, freeze and aggregate, or nothing.

        A frozen round of a relayed task waits for its relay.

        Raises:
            StorageError: A tensor file cannot be read or written; the round stays as it is.
        """
        with self._store.read() as tx:
            is_relayed = find_task(tx, task).is_relayed
        if self.freeze_if_due(task, number).state == "closing" and not is_relayed:
            self.publish(task, number, self.aggregate(task, number))

    def freeze_if_due(self, task: str, number: int) -> Round:
        """Move an open round to the state it must have now; the first transaction of closing."""
        now = self._clock()
        with self._store.write() as tx:
            row = find_task(tx, task)
            before = find_round(tx, task, number)
            after = next_state(before, tx.count_updates(task, number), row.spec.policy, now)
            store_round(tx, row, after)
            if after.state == "closing":
                hit("before-freeze-commit")
        if after.state == "closing":
            hit("after-freeze-commit")
        if after != before:
            log.info("round %d of %s: %s", number, task, _change(after))
        return after

    def aggregate(self, task: str, number: int) -> AdapterRow:
        """Write the next adapter version of a frozen round; no table knows it yet.

        If all its updates are quarantined, the next version is the one before, unchanged.
        """
        with self._store.read() as tx:
            row = find_task(tx, task)
            before = find_adapter(tx, task, number - 1)  # every round makes one version
            work = find_counted(tx, task, number)
            participation = _participation(tx, row, number)
        if not work:
            return replace(before, version=number, round_number=number, created_at=self._clock())
        return self._write_next(row, before, self._read_updates(row, work, participation))

    def sum_up(self, task: str, number: int) -> bytes | None:
        """Return the sum of a frozen round as it goes upstream; nothing if it has no updates.

        The same bytes every time, so that an upstream server counts them once.
        """
        with self._store.read() as tx:
            row = find_task(tx, task)
            work = find_counted(tx, task, number)
            participation = _participation(tx, row, number)
        if not work:
            return None
        total = RunningSum(row.spec.adapter)
        for update in self._read_updates(row, work, participation):
            total.add(update)
        return encode_sum(row.spec.adapter, total, [update for update, _ in work])

    def publish(self, task: str, number: int, row: AdapterRow) -> None:
        """Close a frozen round with its adapter version; the second transaction of closing."""
        with self._store.write() as tx:
            current = find_round(tx, task, number)
            if current.state != "closing":
                return  # another process was faster, with the same bytes
            tx.add_adapter(row)
            tx.update_round(close_round(current, row.version))
            hit("before-publish-commit")
        hit("after-publish-commit")
        log.info("round %d of %s: closed with adapter version %d", number, task, row.version)

    def _write_next(
        self, task: TaskRow, before: AdapterRow, updates: Iterator[WeightedUpdate]
    ) -> AdapterRow:
        """Move an adapter version by the updates of a round and store the next, durably."""
        spec = task.spec
        model = GlobalModel(
            adapter=self._shelf.read(spec.adapter, before), state=self._read_state(task, before)
        )
        after = move_by_mean(spec, model, updates)
        hit("before-adapter-kept")
        row = self._shelf.write(
            spec.adapter,
            after.adapter,
            task=task.name,
            version=before.version + 1,
            round_number=before.version + 1,
            now=self._clock(),
        )
        if after.state is not None:
            row = replace(row, optimizer_digest=self._blobs.put(encode_state(after.state)))
        hit("after-adapter-kept")
        return row

    def _read_state(self, task: TaskRow, before: AdapterRow) -> State | None:
        if before.optimizer_digest is None:
            return None
        return decode_state(self._blobs.read(before.optimizer_digest), task.spec)

    def _read_updates(
        self, task: TaskRow, work: Work, participation: Mapping[str, float]
    ) -> Iterator[WeightedUpdate]:
        """Read one update at a time, in the order given."""
        spec = task.spec
        for update, assignment in work:
            body = self._blobs.read(update.digest)
            if update.weight is not None and update.rank_members is not None:
                weight = late_weight(spec.aggregation, update.weight, update.staleness)
                yield read_sum(spec.adapter, body, update.rank_members, weight)
                continue
            yield WeightedUpdate(
                arrays=view_update(body, spec, assignment.k),
                indices=indices_of(task.seed, spec, assignment),
                weight=update_weight(
                    spec.aggregation,
                    examples=update.examples,
                    participation=participation.get(update.device_id, 1.0),
                    staleness=update.staleness,
                ),
            )


def _participation(tx: Transaction, task: TaskRow, number: int) -> dict[str, float]:
    """Return each device's share of the rounds since its first one, if the weights need it."""
    if task.spec.aggregation.weighting != "inverse_probability":
        return {}
    return {
        device: count / (number - first + 1)
        for device, (count, first) in tx.participation(task.name).items()
    }


def _change(after: Round) -> str:
    return "frozen" if after.state == "closing" else "prolonged, too few updates at the deadline"
