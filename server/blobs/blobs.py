"""Tensor files named by the SHA-256 of their content: the interface, and a folder of them."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from edge_sdk.errors import StorageError
from server.blobs.part_folder import PartFolder
from server.blobs.parts import Parts
from server.blobs.spool import Spool, Upload, make_folder, refused, sync_folder
from server.blobs.staging import Staging

__all__ = ["CHUNK_BYTES", "BlobFolder", "Blobs", "Upload", "bytes_between", "damaged", "is_digest"]

CHUNK_BYTES = 1 << 20
"""The most bytes of a blob that a stream holds at once."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blobs(Protocol):
    """Where tensors live: a blob is durable once kept, and never handed out changed.

    Every method raises StorageError if the place refuses, and ServerBusy if it cannot be reached
    now.
    """

    @property
    def staging(self) -> Staging | None:
        """Where devices put bodies by themselves; None if this place signs no addresses."""

    @property
    def parts(self) -> Parts:
        """Where the parts of updates wait for the rest."""

    def upload(self) -> AbstractContextManager[Upload]:
        """Open a temporary file; it is gone at the end unless :meth:`keep` made it a blob."""

    def keep(self, upload: Upload, digest: str) -> None:
        """Make an upload the durable blob of its digest; again is the same as once.

        Args:
            upload: Complete.
            digest: SHA-256 of its bytes, 64 hex digits, checked by the caller.
        """

    def put(self, body: bytes) -> str:
        """Store bytes durably and return their digest."""

    def read(self, digest: str) -> bytes:
        """Return the bytes of a blob; StorageError unless they are what was stored."""

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a blob from ``start`` to before ``stop``, at most 1 MiB at a time.

        A whole blob is checked on the way: if it is not what was stored, StorageError comes in
        place of its last chunk, so nobody ever gets all of it. Of a part only the size is checked.
        """

    def size(self, digest: str) -> int:
        """Return how many bytes a blob has; StorageError if it is missing."""

    def remove(self, digest: str, changed_before: float = math.inf) -> bool:
        """Delete a blob and return True; return False if it was stored again in the meantime.

        Args:
            digest: Of the blob; a missing one is as good as deleted.
            changed_before: Seconds since 1970; a blob stored later stays.
        """

    def digests(self) -> Iterator[tuple[str, float]]:
        """Yield every blob's digest, in order, and when it was stored, in seconds since 1970."""

    def remove_leftovers(self, older_than_s: float) -> None:
        """Delete temporary files that a killed process left behind on this machine."""

    def check(self) -> None:
        """Raise unless the place can be used now."""


class BlobFolder:
    """Blobs as files on disk, two levels deep; see :class:`Blobs`.

    Args:
        folder: Where they live; made on first use.
    """

    staging = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spool = Spool(folder / "partial")
        self.parts: Parts = PartFolder(folder / "parts")

    def path(self, digest: str) -> Path:
        """Return where the blob of a digest is, or would be."""
        return self._folder / digest[:2] / digest

    def upload(self) -> AbstractContextManager[Upload]:
        """Open a partial file beside the blobs."""
        return self._spool.upload()

    def keep(self, upload: Upload, digest: str) -> None:
        """Make an upload the durable blob of its digest; no partial blob is ever left."""
        target = self.path(digest)
        upload.sync()
        try:
            make_folder(target.parent)
            upload.path.replace(target)
            sync_folder(target.parent)
        except OSError as error:
            raise refused("the tensor file cannot be stored", error) from error

    def put(self, body: bytes) -> str:
        """Store bytes durably and return their digest."""
        digest = hashlib.sha256(body).hexdigest()
        with self.upload() as upload:
            upload.write(body)
            self.keep(upload, digest)
        return digest

    def read(self, digest: str) -> bytes:
        """Return the bytes of a blob."""
        try:
            body = self.path(digest).read_bytes()
        except OSError as error:
            raise refused(f"the tensor file {digest} cannot be read", error) from error
        if hashlib.sha256(body).hexdigest() != digest:
            raise damaged(digest)
        return body

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a blob from ``start`` to before ``stop``."""
        try:
            with self.path(digest).open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size

                def fetch(place: int, length: int) -> bytes:
                    return os.pread(file.fileno(), length, place)

                yield from bytes_between(digest, size, start, stop, fetch)
        except OSError as error:
            raise refused(f"the tensor file {digest} cannot be read", error) from error

    def size(self, digest: str) -> int:
        """Return how many bytes a blob has."""
        try:
            return self.path(digest).stat().st_size
        except OSError as error:
            raise refused(f"the tensor file {digest} cannot be read", error) from error

    def remove(self, digest: str, changed_before: float = math.inf) -> bool:
        """Delete a blob unless it was stored again in the meantime."""
        path = self.path(digest)
        try:
            if path.stat().st_mtime >= changed_before:
                return False
            path.unlink()
        except FileNotFoundError:
            return True
        except OSError as error:
            raise refused(f"the tensor file {digest} cannot be removed", error) from error
        return True

    def digests(self) -> Iterator[tuple[str, float]]:
        """Yield every blob's digest, in order, and when it was stored."""
        for folder in sorted(self._folder.glob("[0-9a-f][0-9a-f]")):
            for path in sorted(folder.iterdir()):
                try:
                    changed_at = path.stat().st_mtime
                except FileNotFoundError:
                    continue  # removed since it was listed
                if is_digest(path.name):
                    yield path.name, changed_at

    def remove_leftovers(self, older_than_s: float) -> None:
        """Delete partial files that a killed process left behind."""
        self._spool.remove_leftovers(older_than_s)

    def check(self) -> None:
        """Raise unless a file can be written now."""
        with self.upload() as upload:
            upload.write(b"?")
            upload.flush()


def bytes_between(
    digest: str, size: int, start: int, stop: int | None, fetch: Callable[[int, int], bytes]
) -> Iterator[bytes]:
    """Yield a part of a blob in chunks; all of it is checked before its last chunk.

    Args:
        digest: Of the blob.
        size: Of the whole blob in bytes, as it is now.
        start: First byte.
        stop: Byte after the last one; None is the end.
        fetch: Returns the bytes from a place, of a length; fewer if the blob ends there.

    Raises:
        StorageError: The blob is shorter than ``stop``, or not what was stored.
    """
    end = size if stop is None else stop
    if not 0 <= start <= end <= size:
        raise damaged(digest)
    chunks = _fetch_all(digest, start, end, fetch)
    return _checked(digest, chunks) if (start, end) == (0, size) else chunks


def is_digest(name: str) -> bool:
    """Say whether a file name is that of a blob."""
    return _DIGEST.fullmatch(name) is not None


def damaged(digest: str) -> StorageError:
    """Return what is raised for a blob that is not what was stored."""
    return StorageError(f"the tensor file {digest} was damaged: restore it from a backup")


def _fetch_all(
    digest: str, start: int, stop: int, fetch: Callable[[int, int], bytes]
) -> Iterator[bytes]:
    for place in range(start, stop, CHUNK_BYTES):
        length = min(CHUNK_BYTES, stop - place)
        chunk = fetch(place, length)
        if len(chunk) != length:
            raise damaged(digest)
        yield chunk


def _checked(digest: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    found = hashlib.sha256()
    held = b""
    for chunk in chunks:
        found.update(chunk)
        if held:
            yield held
        held = chunk
    if found.hexdigest() != digest:
        raise damaged(digest)
    if held:
        yield held
