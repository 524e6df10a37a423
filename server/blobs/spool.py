"""Bytes on their way in: one temporary file per upload, so that none is held in memory."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edge_sdk.errors import StorageError


class Upload:
    """Bytes on their way to becoming a blob.

    Args:
        path: Of the partial file.
        stream: The partial file, opened for reading and writing.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self._stream = stream

    def write(self, chunk: bytes) -> None:
        """Append to the file.

        Raises:
            StorageError: The disk refused.
        """
        try:
            self._stream.write(chunk)
        except OSError as error:
            raise refused("the upload cannot be written", error) from error

    def read(self) -> bytes:
        """Return all that was written.

        Raises:
            StorageError: The disk refused.
        """
        try:
            self._stream.seek(0)
            return self._stream.read()
        except OSError as error:
            raise refused("the upload cannot be read back", error) from error

    def flush(self) -> None:
        """Let others see at ``path`` all that was written.

        Raises:
            StorageError: The disk refused.
        """
        try:
            self._stream.flush()
        except OSError as error:
            raise refused("the upload cannot be written", error) from error

    def sync(self) -> None:
        """Force the bytes to the disk.

        Raises:
            StorageError: The disk refused.
        """
        self.flush()
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise refused("the upload cannot be written", error) from error


class Spool:
    """A folder of partial files.

    Args:
        folder: Where they live; made on first use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def upload(self) -> Iterator[Upload]:
        """Open a partial file; it is gone at the end unless it was moved away.

        Raises:
            StorageError: The disk refused.
        """
        path = self._folder / secrets.token_hex(16)
        try:
            make_folder(self._folder)
            stream = path.open("x+b")
        except OSError as error:
            raise refused("a file cannot be made", error) from error
        try:
            yield Upload(path, stream)
        finally:
            _close(stream)
            path.unlink(missing_ok=True)

    def remove_leftovers(self, older_than_s: float) -> None:
        """Delete partial files that a killed process left behind."""
        limit = time.time() - older_than_s
        for path in self._folder.glob("*"):
            with suppress(OSError):  # in use or gone: another process looks after it
                if path.stat().st_mtime < limit:
                    path.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, for their owner alone, so that they survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refused(what: str, error: OSError) -> StorageError:
    """Return the disk's refusal as our exception, without its paths."""
    return StorageError(f"{what}: {error.strerror or type(error).__name__}")


def _close(stream: BinaryIO) -> None:
    """Close a file that is no longer needed; a full disk may refuse its last bytes."""
    try:
        stream.close()
    except OSError:
        return
