"""Take part in another server's task with the sum of this site's devices, one step at a time.

The site's round n is the upstream server's round n, on the same adapter version. It is opened when
the upstream server gives the relay its places there, and due before it; once frozen, it stays so
until its sum, the same bytes every time, was taken or can never be. So a relay that is killed
anywhere, or sees no answer, sends the same again, and the upstream server counts it once.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from edge_sdk.errors import (
    ConfigError,
    DigestMismatch,
    MalformedMessage,
    MalformedPayload,
    NotAssigned,
    NotFinite,
    RoundClosed,
    TooLarge,
    UpdateConflict,
)
from edge_sdk.wire import payload
from edge_sdk.wire.messages import AdapterInfo, Assignment, CheckIn, CheckInReply, Receipt
from edge_sdk.wire.task import TaskSpec
from server.blobs.blobs import Blobs
from server.failpoints import hit
from server.rounds.adapters import AdapterShelf
from server.rounds.closing import Closing
from server.rounds.standing import store_round
from server.rules.relay_rules import site_spec
from server.rules.rounds import Round, close_round, open_round
from server.storage.lookup import find_round, find_task
from server.storage.store import AdapterRow, Store, TaskRow

log = logging.getLogger(__name__)

_SHARE_OF_ROUND = 0.9
"""Share of the time left upstream after which a site's round is due; the rest is for its sum."""

_FINISHED_PAUSE_S = 60.0
_SEED_BITS = 53
_LOST = (
    RoundClosed,
    NotAssigned,
    MalformedPayload,
    MalformedMessage,
    NotFinite,
    TooLarge,
)
"""Refusals of a sum that sending it again cannot mend."""


class Upstream(Protocol):
    """What a relay asks its upstream: :class:`edge_sdk.network.transport.Transport` does it."""

    def check_in(self, task: str, message: CheckIn) -> CheckInReply:
        """Get places in a round, a time to come back, or the end."""

    def slice_body(self, task: TaskSpec, round_number: int, k: int) -> bytes:
        """Fetch the adapter a round begins with, at ``k = r``."""

    def submit(self, task: str, round_number: int, body: bytes) -> Receipt:
        """Send a sum; when this returns, it counts exactly once."""

    def adapters(self, task: str) -> list[AdapterInfo]:
        """Return the versions of the adapter."""

    def adapter_body(self, task: TaskSpec, version: int, digest: str) -> bytes:
        """Fetch one version whole."""


class Relay:
    """The site's side of every task of an upstream server.

    Args:
        store: Where the site's rows are.
        blobs: Where its tensors are.
        clock: Seconds since 1970.
        publish: Told of a task that has a new adapter version.
        poll_s: Seconds between two looks at the upstream server.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        clock: Callable[[], float],
        publish: Callable[[str], None],
        poll_s: float,
    ) -> None:
        self._store = store
        self._shelf = AdapterShelf(blobs)
        self._closing = Closing(store, blobs, self._shelf, clock)
        self._clock = clock
        self._publish = publish
        self._poll_s = poll_s

    def step(self, upstream: Upstream, spec: TaskSpec) -> float:
        """Do what is due for one task: send a sum, end a round, open one, or nothing.

        Args:
            upstream: Tells who this relay is.
            spec: Of the task, from there.

        Returns:
            Seconds until the next look.

        Raises:
            ConfigError: The task takes no relays or not this one, or another task has its name.
            EdgeError: The upstream server cannot be asked now, or refuses this relay.
        """
        last = self._last_round(spec)
        if last is not None and last.state == "closing":
            self._forward(upstream, last)
        reply = upstream.check_in(
            spec.name,
            CheckIn(
                base_digest=spec.base.digest,
                affordable_k=spec.adapter.r,
                examples=1,
                is_relay=True,
            ),
        )
        last = self._last_round(spec)
        is_over = reply.state == "finished" or (last and reply.round_number > last.number)
        if last is not None and last.state != "closed" and is_over:
            self._end(last)
            return 0.0
        if reply.state == "finished":
            if last is not None:
                self._finish(upstream, spec, reply.round_number)
            return _FINISHED_PAUSE_S
        work = reply.assignment
        if work is not None and (last is None or work.round_number > last.number):
            self._open(upstream, spec, work)
        return reply.retry_after_s or self._poll_s

    def is_due(self, task: str) -> bool:
        """Say whether the sum of a task waits to be sent."""
        with self._store.read() as tx:
            last = tx.last_round(task)
        return last is not None and last.state == "closing"

    def forget(self) -> None:
        """Close every running round unsent: a relay of another identity may have sent its sum."""
        with self._store.write() as tx:
            for row in tx.unfinished_rounds():
                if find_task(tx, row.task).is_relayed:
                    log.warning("round %d of %s: given up, joining anew", row.number, row.task)
                    tx.update_round(close_round(replace(row, state="closing"), row.number))

    def _last_round(self, spec: TaskSpec) -> Round | None:
        with self._store.read() as tx:
            return tx.last_round(spec.name)

    def _forward(self, upstream: Upstream, current: Round) -> None:
        """Send the sum of a frozen round, if it has one, and close it."""
        task, number = current.task, current.number
        body = self._closing.sum_up(task, number)
        if body is not None:
            hit("before-sum-sent")
            try:
                upstream.submit(task, number, body)
                log.info("round %d of %s: its sum is upstream", number, task)
            except UpdateConflict:
                log.warning("round %d of %s: upstream has a sum of it already", number, task)
            except _LOST as error:
                log.warning("round %d of %s: its sum is lost: %s", number, task, error)
            hit("after-sum-sent")
        with self._store.write() as tx:
            now = find_round(tx, task, number)
            if now.state == "closing":
                tx.update_round(close_round(now, number))
        hit("after-sum-commit")

    def _end(self, current: Round) -> None:
        """Freeze a round whose time is over upstream; without updates it is closed at once."""
        with self._store.write() as tx:
            row = find_task(tx, current.task)
            now = find_round(tx, current.task, current.number)
            if now.state == "open":
                frozen = replace(now, state="closing")
                is_empty = tx.count_updates(row.name, now.number) == 0
                store_round(tx, row, close_round(frozen, now.number) if is_empty else frozen)

    def _open(self, upstream: Upstream, spec: TaskSpec, work: Assignment) -> None:
        """Open the site's round with the adapter version of the upstream server's."""
        due_at = self._clock() + _SHARE_OF_ROUND * work.deadline_s
        site = site_spec(spec, work.members)
        self._check_known(site)
        body = upstream.slice_body(spec, work.round_number, spec.adapter.r)
        version = self._keep(site, body, work.adapter_version)
        now = self._clock()
        with self._store.write() as tx:
            if tx.task(site.name) is None:
                seed = secrets.randbits(_SEED_BITS)
                tx.add_task(
                    TaskRow(name=site.name, spec=site, seed=seed, created_at=now, is_relayed=True)
                )
            if tx.adapter(site.name, version.version) is None:
                tx.add_adapter(version)
            if tx.round(site.name, work.round_number) is None:
                opened = open_round(site.name, work.round_number, site.policy, now)
                tx.add_round(replace(opened, deadline_at=due_at))
        self._publish(site.name)
        log.info("round %d of %s: open for %d devices", work.round_number, site.name, work.members)

    def _finish(self, upstream: Upstream, spec: TaskSpec, number: int) -> None:
        """Take the last adapter version over, and close the task at the site."""
        with self._store.read() as tx:
            known = tx.last_adapter(spec.name)
        newest = max(upstream.adapters(spec.name), key=lambda info: info.version)
        if known is not None and known.version >= newest.version:
            return
        version = self._keep(spec, self._fetch(upstream, spec, newest), newest.version)
        now = self._clock()
        with self._store.write() as tx:
            tx.add_adapter(version)
            if tx.round(spec.name, number) is None:
                missed = replace(open_round(spec.name, number, spec.policy, now), state="closing")
                tx.add_round(close_round(missed, number))
        self._publish(spec.name)
        log.info("task %s is finished", spec.name)

    def _check_known(self, site: TaskSpec) -> None:
        with self._store.read() as tx:
            known = tx.task(site.name)
        if known is not None and not (known.is_relayed and known.spec == site):
            raise ConfigError(
                f"task {site.name!r} of the upstream server is not the one this relay has under "
                "that name: give the relay a state folder of its own, empty at first"
            )

    def _fetch(self, upstream: Upstream, spec: TaskSpec, info: AdapterInfo) -> bytes:
        body = upstream.adapter_body(spec, info.version, info.digest)
        if payload.digest(body) != info.digest:
            raise DigestMismatch(f"adapter version {info.version} came damaged: fetch it again")
        return body

    def _keep(self, spec: TaskSpec, body: bytes, version: int) -> AdapterRow:
        """Store an adapter version of the upstream server durably; no table knows it yet."""
        adapter = spec.adapter
        shapes = payload.adapter_shapes(adapter, adapter.r)
        arrays, _ = payload.decode(body, shapes, adapter.wire_dtype)
        return self._shelf.write(
            adapter,
            arrays,
            task=spec.name,
            version=version,
            round_number=version,
            now=self._clock(),
        )
