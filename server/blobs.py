"""Tensor files on disk, named by the SHA-256 of their content; a kept file is durable."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edge_sdk.errors import StorageError


class Upload:
    """Bytes on their way to becoming a blob, in a file beside the blobs.

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
            raise _refused("the upload cannot be written", error) from error

    def read(self) -> bytes:
        """Return all that was written.

        Raises:
            StorageError: The disk refused.
        """
        try:
            self._stream.seek(0)
            return self._stream.read()
        except OSError as error:
            raise _refused("the upload cannot be read back", error) from error

    def sync(self) -> None:
        """Force the bytes to the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())


class BlobFolder:
    """Content-addressed files, two levels deep.

    Args:
        folder: Where they live; made on first use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._partials = folder / "partial"

    def path(self, digest: str) -> Path:
        """Return where the blob of a digest is, or would be."""
        return self._folder / digest[:2] / digest

    @contextmanager
    def upload(self) -> Iterator[Upload]:
        """Open a partial file; it is gone at the end unless :meth:`keep` made it a blob.

        Raises:
            StorageError: The disk refused.
        """
        path = self._partials / secrets.token_hex(16)
        try:
            _make_folder(self._partials)
            stream = path.open("x+b")
        except OSError as error:
            raise _refused("a file cannot be made", error) from error
        try:
            yield Upload(path, stream)
        finally:
            _close(stream)
            path.unlink(missing_ok=True)

    def keep(self, upload: Upload, digest: str) -> None:
        """Make an upload the durable blob of its digest; again is the same as once.

        Args:
            upload: Complete.
            digest: SHA-256 of its bytes, 64 hex digits, checked by the caller.

        Raises:
            StorageError: The disk refused; no partial blob is left.
        """
        target = self.path(digest)
        try:
            upload.sync()
            _make_folder(target.parent)
            upload.path.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            raise _refused("the tensor file cannot be stored", error) from error

    def put(self, body: bytes) -> str:
        """Store bytes durably and return their digest.

        Raises:
            StorageError: The disk refused; no partial blob is left.
        """
        digest = hashlib.sha256(body).hexdigest()
        with self.upload() as upload:
            upload.write(body)
            self.keep(upload, digest)
        return digest

    def read(self, digest: str) -> bytes:
        """Return the bytes of a blob.

        Raises:
            StorageError: Missing, unreadable, or no longer what was stored.
        """
        try:
            body = self.path(digest).read_bytes()
        except OSError as error:
            raise _refused(f"the tensor file {digest} cannot be read", error) from error
        if hashlib.sha256(body).hexdigest() != digest:
            raise StorageError(
                f"the tensor file {digest} was damaged on disk: restore it from a backup"
            )
        return body

    def remove_leftovers(self, older_than_s: float) -> None:
        """Delete partial files that a killed process left behind."""
        limit = time.time() - older_than_s
        for path in self._partials.glob("*"):
            with suppress(OSError):  # in use or gone: another process looks after it
                if path.stat().st_mtime < limit:
                    path.unlink()


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents so that they survive a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _close(stream: BinaryIO) -> None:
    """Close a file that is no longer needed; a full disk may refuse its last bytes."""
    try:
        stream.close()
    except OSError:
        return


def _refused(what: str, error: OSError) -> StorageError:
    return StorageError(f"{what}: {error.strerror or type(error).__name__}")
