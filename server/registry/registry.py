"""Which adapter version devices use: signed versions, and the channel that points at one.

Every version is signed once, right after its round closes. The channel ``stable`` follows the
latest version until the operator holds it at one; a canary gives a share of the devices another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from edge_sdk.errors import ConfigError, NotFound, ServerFailed
from edge_sdk.wire.manifest import Manifest, Pointer, Signed, canonical, spec_digest
from server.access.audit import record
from server.access.key_ring import KeyRing, read_signed
from server.storage.lookup import find_adapter, find_task
from server.storage.registry_store import PointerRow
from server.storage.store import Store, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """What the channel of a task shall say next."""

    version: int
    canary_version: int | None = None
    canary_share: float = 0.0
    follows_latest: bool = False


class Registry:
    """Signs adapter versions and moves the channels.

    Args:
        store: Where rows are.
        keys: Sign.
        clock: Seconds since 1970.
    """

    def __init__(self, store: Store, keys: KeyRing, clock: Callable[[], float]) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock

    def prepare(self) -> None:
        """Make the first key if there is none, and sign every version that is not.

        Raises:
            ConfigError: This process has a key that is not the fleet's.
            StorageError: The key cannot be made or read.
        """
        with self._store.write() as tx:
            self._keys.current(tx)
            for task in tx.task_names():
                self._sign(tx, task)

    def catch_up(self, task: str) -> None:
        """Sign the versions of a task that are not yet; its channel may follow.

        Raises:
            NotFound: There is no such task.
            ServerFailed: This process has a key that is not the fleet's.
        """
        with self._store.read() as tx:
            find_task(tx, task)
            is_behind = bool(tx.unsigned_versions(task))
        if is_behind:
            self._sign_in_time(task)

    def manifest(self, task: str, version: int) -> Signed:
        """Return what one version is.

        Raises:
            NotFound: No such task or version.
        """
        self.catch_up(task)
        with self._store.read() as tx:
            find_adapter(tx, task, version)
            text = tx.manifest(task, version)
        return _known(text, task)

    def pointer(self, task: str) -> Signed:
        """Return what the channel ``stable`` of a task says now.

        Raises:
            NotFound: There is no such task.
        """
        self.catch_up(task)
        with self._store.read() as tx:
            row = tx.last_pointer(task)
        return _known(row.signed if row else None, task)

    def public_key(self) -> str:
        """Return the key that devices pin when they join, 64 hex digits."""
        return self._keys.newest().public_key

    def successions(self) -> list[Signed]:
        """Return how the first key led to the newest one, oldest first."""
        return self._keys.successions()

    def hold(self, task: str, version: int, who: str) -> PointerRow:
        """Let every device use one version, until told otherwise.

        Raises:
            NotFound: No such task or version.
        """
        with self._store.write() as tx:
            self._signed_tip(tx, task)
            find_adapter(tx, task, version)
            return self._change(tx, task, _Target(version=version), who, "adapter.promote")

    def follow_latest(self, task: str, who: str) -> PointerRow:
        """Let every device use the newest version, now and after each round.

        Raises:
            NotFound: There is no such task.
        """
        with self._store.write() as tx:
            self._signed_tip(tx, task)
            target = _Target(version=_latest(tx, task), follows_latest=True)
            return self._change(tx, task, target, who, "adapter.promote")

    def start_canary(self, task: str, version: int, share: float, who: str) -> PointerRow:
        """Let a share of the devices use a version; the others are held at theirs.

        Raises:
            NotFound: No such task or version.
            ConfigError: A share that is none, or a version that all devices use anyway.
        """
        if not 0 < share < 1:
            raise ConfigError(
                f"a canary of {share:.3%} of the devices: it must be between 0 % and 100 %; "
                "leave the canary out to promote for all"
            )
        with self._store.write() as tx:
            tip = self._signed_tip(tx, task)
            find_adapter(tx, task, version)
            if version == tip.version:
                raise ConfigError(
                    f"all devices of {task!r} use version {version} already: promote another one"
                )
            target = _Target(version=tip.version, canary_version=version, canary_share=share)
            return self._change(tx, task, target, who, "adapter.canary")

    def roll_back(self, task: str, who: str) -> PointerRow:
        """End the canary if there is one; else return to the version before the present one.

        Raises:
            NotFound: There is no such task.
            ConfigError: There is nothing to return to.
        """
        with self._store.write() as tx:
            tip = self._signed_tip(tx, task)
            version = tip.version
            if tip.canary_version is None:
                older = [row.version for row in tx.pointers(task) if row.version < version]
                if not older:
                    raise ConfigError(
                        f"devices of {task!r} never used a version older than {version}: "
                        "promote one by its number"
                    )
                version = older[-1]
            return self._change(tx, task, _Target(version=version), who, "adapter.rollback")

    def _sign_in_time(self, task: str) -> None:
        """Sign while the server runs: what is wrong is not the fault of who asked."""
        try:
            with self._store.write() as tx:
                self._sign(tx, task)
        except ConfigError as error:
            raise ServerFailed(str(error)) from error

    def _signed_tip(self, tx: Transaction, task: str) -> PointerRow:
        """Return what the channel says now, after all versions are signed."""
        find_task(tx, task)
        self._sign(tx, task)
        tip = tx.last_pointer(task)
        if tip is None:
            raise NotFound(f"task {task!r} has no adapter version yet")
        return tip

    def _sign(self, tx: Transaction, task: str) -> None:
        """Sign every version of a task that is not; move a channel that follows the latest."""
        versions = tx.unsigned_versions(task)
        if not versions:
            return
        key = self._keys.current(tx)
        for version in versions:
            signed = key.sign(_manifest(tx, task, version))
            tx.add_manifest(task, version, canonical(signed).decode())
        tip = tx.last_pointer(task)
        if tip is None or tip.follows_latest:
            self._point(tx, task, _Target(version=_latest(tx, task), follows_latest=True))

    def _change(
        self, tx: Transaction, task: str, target: _Target, who: str, action: str
    ) -> PointerRow:
        """Move a channel because somebody asked for it."""
        row = self._point(tx, task, target)
        record(tx, row.created_at, who, action, f"{task}: {describe(row)}")
        return row

    def _point(self, tx: Transaction, task: str, target: _Target) -> PointerRow:
        tip = tx.last_pointer(task)
        row = PointerRow(
            task=task,
            sequence=tip.sequence + 1 if tip else 1,
            version=target.version,
            canary_version=target.canary_version,
            canary_share=target.canary_share,
            follows_latest=target.follows_latest,
            created_at=self._clock(),
            signed="",
        )
        pointer = Pointer(
            task=task,
            sequence=row.sequence,
            version=row.version,
            canary_version=row.canary_version,
            canary_share=row.canary_share,
            created_at=row.created_at,
        )
        signed = self._keys.current(tx).sign(pointer)
        row = replace(row, signed=canonical(signed).decode())
        tx.add_pointer(row)
        return row


def describe(row: PointerRow) -> str:
    """Return in words what a channel says."""
    if row.canary_version is not None:
        return (
            f"version {row.canary_version} for {row.canary_share:.3g} of the devices, "
            f"{row.version} for the others"
        )
    return f"version {row.version}" + (", following the latest" if row.follows_latest else "")


def _latest(tx: Transaction, task: str) -> int:
    return tx.adapters(task)[-1].version


def _manifest(tx: Transaction, task: str, version: int) -> Manifest:
    spec, row = find_task(tx, task).spec, find_adapter(tx, task, version)
    parent = tx.adapter(task, version - 1)
    return Manifest(
        task=task,
        version=version,
        round_number=row.round_number,
        parent_version=version - 1 if version else None,
        parent_digest=parent.digest if parent else None,
        base_digest=spec.base.digest,
        spec_digest=spec_digest(spec.adapter),
        digest=row.digest,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
    )


def _known(text: str | None, task: str) -> Signed:
    if text is None:
        raise NotFound(f"task {task!r} has no signed version yet: ask again soon")
    return read_signed(text)
