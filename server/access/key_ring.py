"""Which key speaks for the server: its private half in a file, its history in the database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_sdk.errors import ConfigError
from edge_sdk.wire.manifest import (
    Manifest,
    Pointer,
    Signed,
    Statement,
    Succession,
    canonical,
    open_signed,
)
from edge_sdk.wire.messages import decode_message
from server.access.audit import record
from server.access.signing import SigningKey, make_key, open_key, read_key, replace_key
from server.storage.registry_store import SigningKeyRow
from server.storage.store import Store, Transaction


class KeyRing:
    """The signing keys of a server and all its replicas.

    Args:
        store: Where the public keys are.
        path: Of the private key's file.
        clock: Seconds since 1970.
    """

    def __init__(self, store: Store, path: Path, clock: Callable[[], float]) -> None:
        self._store = store
        self._path = path
        self._clock = clock

    def current(self, tx: Transaction) -> SigningKey:
        """Return the key to sign with; the first one ever is made known to the fleet here.

        Args:
            tx: Of a writing transaction.

        Raises:
            ConfigError: This process has a key that is not the fleet's.
            StorageError: The key's file cannot be read or made.
        """
        known = tx.signing_keys()
        if not known:
            first = open_key(self._path)
            tx.add_signing_key(self._row(first, 1, None))
            return first
        mine = read_key(self._path)
        if mine is not None and mine.key_id == known[-1].key_id:
            return mine
        waiting = read_key(self._next)
        if waiting is not None and waiting.key_id == known[-1].key_id:
            replace_key(self._path, waiting)  # a change of keys was cut off before its last step
            self._next.unlink(missing_ok=True)
            return waiting
        holds = "is missing" if mine is None else f"holds key {mine.key_id}"
        raise ConfigError(
            f"{self._path} {holds}, but the devices trust {known[-1].key_id}: "
            "give every replica the same file with the setting signing_key"
        )

    def newest(self) -> SigningKeyRow:
        """Return the public key that devices pin when they join."""
        with self._store.read() as tx:
            known = tx.signing_keys()
        if known:
            return known[-1]
        with self._store.write() as tx:
            self.current(tx)
            return tx.signing_keys()[-1]

    def successions(self) -> list[Signed]:
        """Return how the first key led to the newest one, oldest first."""
        with self._store.read() as tx:
            known = tx.signing_keys()
        return [read_signed(row.succession) for row in known if row.succession is not None]

    def rotate(self, who: str) -> SigningKeyRow:
        """Let a new key take over: signed by the old one, and everything signed again.

        Args:
            who: For the audit log.

        Raises:
            BadSignature: Something that is signed was changed in the database.
            ConfigError: This process has a key that is not the fleet's.
            StorageError: The new key cannot be kept; the old one goes on.
        """
        with self._store.write() as tx:
            old, new = self.current(tx), make_key()
            replace_key(self._next, new)
            now = self._clock()
            succession = old.sign(Succession(public_key=new.public_key, created_at=now))
            row = self._row(new, tx.signing_keys()[-1].number + 1, _text(succession))
            tx.add_signing_key(row)
            _sign_again(tx, old, new)
            record(tx, now, who, "key.rotate", f"{old.key_id} to {new.key_id}")
        with self._store.write() as tx:
            self.current(tx)  # puts the new key where the old one was
        return row

    @property
    def _next(self) -> Path:
        return self._path.with_name(f"{self._path.name}.next")

    def _row(self, key: SigningKey, number: int, succession: str | None) -> SigningKeyRow:
        return SigningKeyRow(
            number=number,
            key_id=key.key_id,
            public_key=key.public_key,
            succession=succession,
            created_at=self._clock(),
        )


def read_signed(text: str) -> Signed:
    """Return a signed statement as the database keeps it.

    Raises:
        MalformedMessage: The database was changed by hand.
    """
    return decode_message(Signed, text.encode())


def _text(signed: Signed) -> str:
    return canonical(signed).decode()


def _sign_again(tx: Transaction, old: SigningKey, new: SigningKey) -> None:
    """Sign every manifest, and what the channels say now, with a new key."""
    for task, version, text in tx.manifests():
        tx.replace_manifest(task, version, _again(Manifest, text, old, new))
    for task in tx.task_names():
        row = tx.last_pointer(task)
        if row is not None:
            tx.replace_pointer(row, _again(Pointer, row.signed, old, new))


def _again(kind: type[Statement], text: str, old: SigningKey, new: SigningKey) -> str:
    return _text(new.sign(open_signed(kind, read_signed(text), old.public_key)))
