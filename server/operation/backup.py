"""Copy the state of a running server into a folder, and back into an empty one."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url

from edge_sdk.errors import ConfigError, ServerBusy, StorageError
from server.blobs.blobs import BlobFolder, Blobs
from server.blobs.spool import refused, sync_folder
from server.operation.collecting import COLLECTING
from server.settings.settings import Settings
from server.state import open_blobs, open_state
from server.storage.sql_store import open_store

_DATABASE = "server.sqlite"
_KEY = "signing-key.pem"
_BLOBS = "blobs"
_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a backup or its restoration copied.

    Attributes:
        tensor_files: How many.
        size_bytes: Of the tensor files together.
        missing: Digests of those that were missing or damaged where they came from.
    """

    tensor_files: int
    size_bytes: int
    missing: tuple[str, ...]


def back_up(settings: Settings, folder: Path, now: float) -> Copied:
    """Copy database, tensor files and signing key of a server, which may be running.

    The database comes last, under its name: a folder without it is no backup.

    Args:
        settings: Of the server.
        folder: To make; may be there if it is empty.
        now: Seconds since 1970.

    Raises:
        ConfigError: The rows are not in SQLite, there is no server, or the folder is not empty.
        StorageError: A disk or the object store refused.
        ServerBusy: The server is removing tensor files at this moment.
    """
    database = _database_file(settings)
    if not database.is_file():
        raise ConfigError(f"{database} is not there: name the server's state folder with --state")
    _make_empty(folder)
    store, blobs = open_state(settings)
    with closing(store), store.exclusive(COLLECTING) as is_alone:
        blobs.check()
        if not is_alone:
            raise ServerBusy(
                "the server is removing old tensor files: back up again in a minute", _RETRY_AFTER_S
            )
        if not settings.signing_key:
            _copy_key(settings.signing_key_file, folder / _KEY)
        copying = _Copying(database, folder / _DATABASE)
        needed = copying.needed_digests(now - settings.keep_updates_s)
        copied = _copy_blobs(needed, blobs, BlobFolder(folder / _BLOBS))
        copying.finish()
    return copied


def restore(settings: Settings, folder: Path) -> Copied:
    """Copy a backup to where the settings say that the state is.

    The database comes last: until then the server has none, and the call can be repeated.

    Args:
        settings: Of the server, which has no database yet.
        folder: Made by :func:`back_up`.

    Raises:
        ConfigError: The folder is no backup, or the server has a database or another key.
        StorageError: A disk or the object store refused.
        ServerBusy: The object store cannot be reached now.
    """
    database = _database_file(settings)
    if not (folder / _DATABASE).is_file():
        raise ConfigError(f"{folder} holds no complete backup: {_DATABASE} is missing")
    if database.exists():
        raise ConfigError(f"{database} is there already: restore into an empty state folder")
    for place in (settings.state, database.parent):
        _make(place)
    blobs = open_blobs(settings)
    blobs.check()
    if not settings.signing_key:
        _copy_key(folder / _KEY, settings.signing_key_file)
    copying = _Copying(folder / _DATABASE, database)
    there = BlobFolder(folder / _BLOBS)
    needed = copying.needed_digests(math.inf) | {digest for digest, _ in there.digests()}
    copied = _copy_blobs(needed, there, blobs)
    copying.finish()
    return copied


class _Copying:
    """A copy of a database that gets its name when all its tensor files are there.

    Args:
        source: A SQLite database, which may be in use.
        target: Where the copy will be.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self._target = target
        self._partial = target.with_name(f"{target.name}.partial")
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{self._partial}{suffix}").unlink(missing_ok=True)
        try:
            self._partial.touch(mode=0o600)  # SQLite would let everybody read it
            with (
                closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as old,
                closing(sqlite3.connect(self._partial)) as new,
            ):
                old.backup(new)
                (found,) = new.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            raise StorageError(f"the database {source} cannot be copied: {error}") from error
        except OSError as error:
            raise refused(f"the database {source} cannot be copied", error) from error
        if found != "ok":
            raise StorageError(f"the database {source} was damaged: {found}")

    def needed_digests(self, closed_before: float) -> set[str]:
        """Return the digests of all blobs that the copied rows need."""
        rows = URL.create("sqlite", database=str(self._partial))
        with closing(open_store(rows)) as store, store.read() as tx:
            return tx.needed_digests("", closed_before)

    def finish(self) -> None:
        """Make the copy one durable file and give it its name."""
        try:
            with closing(sqlite3.connect(self._partial)) as database:
                database.execute("PRAGMA journal_mode = DELETE")
            with self._partial.open("rb+") as file:
                os.fsync(file.fileno())
            self._partial.replace(self._target)
            sync_folder(self._target.parent)
        except sqlite3.Error as error:
            raise StorageError(f"the database cannot be written: {error}") from error
        except OSError as error:
            raise refused("the database cannot be written", error) from error


def _copy_blobs(digests: Iterable[str], source: Blobs, target: Blobs) -> Copied:
    sizes = {digest: _copy_blob(digest, source, target) for digest in sorted(digests)}
    return Copied(
        tensor_files=sum(size is not None for size in sizes.values()),
        size_bytes=sum(size for size in sizes.values() if size is not None),
        missing=tuple(digest for digest, size in sizes.items() if size is None),
    )


def _copy_blob(digest: str, source: Blobs, target: Blobs) -> int | None:
    """Copy one blob and return its size; None if its source does not have it as it was stored."""
    size = 0
    with target.upload() as upload:
        chunks = source.stream(digest)
        while True:
            try:
                chunk = next(chunks, None)
            except StorageError:
                return None
            if chunk is None:
                break
            upload.write(chunk)
            size += len(chunk)
        target.keep(upload, digest)
    return size


def _database_file(settings: Settings) -> Path:
    url = make_url(settings.url)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise ConfigError(
            "the rows of this server are not in SQLite: back up PostgreSQL with pg_dump, and the "
            "tensor files with the versioning of their bucket"
        )
    return Path(url.database)


def _make_empty(folder: Path) -> None:
    _make(folder)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: back up into a new folder")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise refused(f"the folder {folder} cannot be made", error) from error


def _copy_key(source: Path, target: Path) -> None:
    """Copy the private key for its owner's eyes only; a server that never started has none."""
    if not source.exists():
        return
    try:
        key = source.read_bytes()
        if target.exists() and target.read_bytes() != key:
            raise ConfigError(f"{target} is there already and is another key: move it away")
        with open(target, "wb", opener=_open_private) as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise refused("the signing key cannot be copied", error) from error


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
