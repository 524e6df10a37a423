"""Make a task: its row and version 0 of its adapter, both or none."""

from __future__ import annotations

import numpy as np

from edge_sdk.errors import ConfigError
from edge_sdk.wire.task import TaskSpec
from server.access.audit import record
from server.aggregation.weighted_mean import initial_adapter
from server.rounds.adapters import AdapterShelf
from server.storage.store import Store, TaskRow


def create_task(
    store: Store,
    shelf: AdapterShelf,
    spec: TaskSpec,
    seed: int,
    now: float,
    who: str = "the operator",
) -> None:
    """Write a new task with its initial adapter.

    Args:
        store: Where the rows go.
        shelf: Where the adapter goes.
        spec: Of the task.
        seed: Of all its randomness, ``0 .. 2**53 - 1``.
        now: Seconds since 1970.
        who: For the audit log.

    Raises:
        ConfigError: The name is taken, or the seed is out of range.
    """
    if not 0 <= seed < 2**53:
        raise ConfigError(f"seed={seed} must be in 0..{2**53 - 1}")
    with store.read() as tx:
        _check_name(tx.task_names(), spec.name)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    adapter = initial_adapter(spec.adapter, rng)
    row = shelf.write(spec.adapter, adapter, task=spec.name, version=0, round_number=0, now=now)
    with store.write() as tx:
        _check_name(tx.task_names(), spec.name)
        tx.add_task(TaskRow(name=spec.name, spec=spec, seed=seed, created_at=now))
        tx.add_adapter(row)
        record(tx, now, who, "task.create", spec.name)


def _check_name(taken: list[str], name: str) -> None:
    if name in taken:
        raise ConfigError(f"task {name!r} exists already: choose another name")
