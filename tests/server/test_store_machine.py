"""Any sequence of changes: the store does what dicts do, in SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edge_sdk.errors import StorageError
from server.storage import tables
from server.storage.sql_store import open_store
from tests.server.store_rows import ADAPTER, ASSIGNMENT, ROUND, SPEC, TASK, UPDATE, device_row

TASKS = st.sampled_from(["one", "two"])
DEVICES = st.sampled_from(["a0", "b1", "c2"])
NUMBERS = st.integers(1, 3)
COUNTS = st.integers(0, 2**53)
SECONDS = st.floats(allow_nan=False, allow_infinity=False)
UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=100)


def _mean_loss(means):
    """How many updates there are, and the mean of their losses."""
    return (len(means), sum(row.loss for row in means) / len(means)) if means else None


class StoreMachine(RuleBasedStateMachine):
    """A store, and beside it the dicts it must agree with."""

    place: str

    def __init__(self) -> None:
        super().__init__()
        self.store = open_store(self.place)
        with self.store.write() as tx:
            for table in reversed(tables.metadata.sorted_tables):
                tx._connection.execute(table.delete())
        self.tasks, self.devices, self.rounds = {}, {}, {}
        self.adapters, self.assignments, self.updates, self.drawn = {}, {}, {}, {}

    def teardown(self) -> None:
        self.store.close()

    @rule()
    def reopen(self):
        self.store.close()
        self.store = open_store(self.place)

    @rule(name=TASKS, seed=COUNTS)
    def add_task(self, name, seed):
        row = replace(TASK, name=name, seed=seed, spec=replace(SPEC, name=name))
        self._add("add_task", self.tasks, name, row)
        self.drawn.setdefault(name, 0)

    @rule(device=DEVICES, name=UNICODE)
    def add_device(self, device, name):
        self._add("add_device", self.devices, device, device_row(device, name))

    @rule(task=TASKS, number=NUMBERS, now=SECONDS)
    def add_round(self, task, number, now):
        row = replace(ROUND, task=task, number=number, opened_at=now, deadline_at=now)
        self._add("add_round", self.rounds, (task, number), row, task in self.tasks)

    @rule(task=TASKS, version=NUMBERS, size=COUNTS)
    def add_adapter(self, task, version, size):
        row = replace(ADAPTER, task=task, version=version, size_bytes=size)
        self._add("add_adapter", self.adapters, (task, version), row, task in self.tasks)

    @rule(task=TASKS, number=NUMBERS, device=DEVICES, version=NUMBERS, k=st.integers(1, 64))
    def add_assignment(self, task, number, device, version, k):
        row = replace(
            ASSIGNMENT,
            task=task,
            round_number=number,
            device_id=device,
            adapter_version=version,
            k=k,
            drawn_from=k if k % 2 else None,
        )
        knows_all = (
            (task, number) in self.rounds
            and (task, version) in self.adapters
            and device in self.devices
        )
        self._add("add_assignment", self.assignments, (task, number, device), row, knows_all)

    @precondition(lambda self: self.assignments)
    @rule(data=st.data(), counted_in=NUMBERS, loss=SECONDS, examples=COUNTS)
    def add_update(self, data, counted_in, loss, examples):
        task, number, device = data.draw(st.sampled_from(sorted(self.assignments)))
        row = replace(
            UPDATE,
            task=task,
            round_number=number,
            device_id=device,
            counted_in=counted_in,
            loss=loss,
            examples=examples,
        )
        self._add("add_update", self.updates, (task, number, device), row)

    @precondition(lambda self: self.rounds)
    @rule(data=st.data(), state=st.sampled_from(["open", "closing", "closed"]), now=SECONDS)
    def update_round(self, data, state, now):
        key = data.draw(st.sampled_from(sorted(self.rounds)))
        row = replace(self.rounds[key], state=state, stretch_at=now)
        with self.store.write() as tx:
            tx.update_round(row)
        self.rounds[key] = row

    @precondition(lambda self: self.assignments)
    @rule(data=st.data(), k=st.integers(1, 64), size=st.integers(0, 2**40))
    def shrink_and_download(self, data, k, size):
        key = data.draw(st.sampled_from(sorted(self.assignments)))
        row = self.assignments[key]
        with self.store.write() as tx:
            tx.shrink_assignment(row, k)
            tx.add_download(row, size)
        self.assignments[key] = replace(row, k=k, download_bytes=row.download_bytes + size)

    @precondition(lambda self: self.updates)
    @rule(data=st.data())
    def quarantine(self, data):
        key = data.draw(st.sampled_from(sorted(self.updates)))
        with self.store.write() as tx:
            tx.quarantine(self.updates[key], "too large")
        self.updates[key] = replace(self.updates[key], quarantine="too large")

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), count=st.integers(0, 64))
    def take_draws(self, data, count):
        task = data.draw(st.sampled_from(sorted(self.tasks)))
        with self.store.write() as tx:
            assert tx.take_draws(task, count) == self.drawn[task]
        self.drawn[task] += count

    @rule(name=TASKS, device=DEVICES)
    def abandon(self, name, device):
        """Begin a transaction, change all there is, and give it up."""
        with pytest.raises(KeyError):
            self._change_and_fail(name, device)

    def _change_and_fail(self, name, device):
        with self.store.write() as tx:
            for row in self.rounds.values():
                tx.update_round(replace(row, deadline_at=row.deadline_at / 2 + 1))
            for row in self.updates.values():
                tx.quarantine(row, "abandoned")
            for row in self.assignments.values():
                tx.shrink_assignment(row, 77)
            if name not in self.tasks:
                tx.add_task(replace(TASK, name=name))
            if device not in self.devices:
                tx.add_device(device_row(device))
            raise KeyError

    def _add(self, how, rows, key, row, is_possible=True):
        """Insert a row; a second one, or one that refers to nothing, is refused."""
        if is_possible and key not in rows:
            with self.store.write() as tx:
                getattr(tx, how)(row)
            rows[key] = row
        else:
            with pytest.raises(StorageError), self.store.write() as tx:
                getattr(tx, how)(row)

    @invariant()
    def agrees_on_tasks_and_rounds(self):
        with self.store.read() as tx:
            assert tx.task_names() == sorted(self.tasks)
            assert {name: tx.task(name) for name in self.tasks} == self.tasks
            assert {name: tx.device(name) for name in self.devices} == self.devices
            unfinished = [row for _, row in sorted(self.rounds.items()) if row.state != "closed"]
            assert tx.unfinished_rounds() == unfinished
            for task in ("one", "two"):
                rounds = self._of(self.rounds, task)
                assert tx.rounds(task) == rounds
                assert tx.last_round(task) == (rounds[-1] if rounds else None)
                assert tx.adapters(task) == self._of(self.adapters, task)

    @invariant()
    def agrees_on_work_and_updates(self):
        with self.store.read() as tx:
            for task in ("one", "two"):
                assert tx.participation(task) == self._participation(task)
                losses = tx.mean_losses(task)
                for number in (1, 2, 3):
                    given = self._of(self.assignments, task, number)
                    assert tx.assignments(task, number) == given
                    assert tx.count_assignments(task, number) == len(given)
                    counted = self._counted(task, number)
                    assert tx.updates(task, number) == counted
                    means = [row for row in counted if row.quarantine is None]
                    assert tx.count_updates(task, number) == len(means)
                    assert losses.get(number) == pytest.approx(_mean_loss(means))
            for key, row in self.updates.items():
                assert tx.accepted(*key) == row
            for key, row in self.assignments.items():
                assert tx.assignment(*key) == row

    def _of(self, rows, *first):
        """The rows whose key begins so, by the rest of the key."""
        return [row for key, row in sorted(rows.items()) if key[: len(first)] == first]

    def _counted(self, task, number):
        rows = [row for row in self._of(self.updates, task) if row.counted_in == number]
        return sorted(rows, key=lambda row: (-row.round_number, row.device_id))

    def _participation(self, task):
        found: dict[str, tuple[int, int]] = {}
        for row in self._of(self.updates, task):
            if row.quarantine is None:
                count, first = found.get(row.device_id, (0, row.round_number))
                found[row.device_id] = (count + 1, min(first, row.round_number))
        return found


def test_the_store_does_what_dicts_do(address):
    """Any sequence of changes, refused ones and abandoned ones too, and reopening."""

    class Machine(StoreMachine):
        place = address

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=8, stateful_step_count=20, deadline=None)
    )
