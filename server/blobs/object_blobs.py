"""Blobs in an S3-compatible object store, by ranges of bounded size and in bounded time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path

import obstore

from server.blobs.blobs import bytes_between, damaged, is_digest
from server.blobs.object_parts import ObjectParts
from server.blobs.object_staging import ObjectStaging
from server.blobs.object_store import NAMES_AT_ONCE, open_bucket, typed_errors
from server.blobs.parts import Parts
from server.blobs.spool import Spool, Upload

_PART_BYTES = 8 << 20  # of a multipart upload
_PARTS_AT_ONCE = 2
_READ_BYTES = 16 << 20  # per request, when a whole blob goes into memory anyway


class ObjectBlobs:
    """Blobs as objects below a prefix of a bucket; see :class:`server.blobs.blobs.Blobs`.

    Args:
        url: ``s3://bucket`` or ``s3://bucket/prefix``.
        endpoint: Address of the store, such as ``http://127.0.0.1:9000``; empty means AWS.
        spool: Folder for uploads under way; made on first use.

    Raises:
        ConfigError: An address that names no bucket.
    """

    def __init__(self, url: str, endpoint: str, spool: Path) -> None:
        self._store = open_bucket(url, endpoint)
        self._staging = ObjectStaging(url, endpoint)
        self.parts: Parts = ObjectParts(url, endpoint)
        self._spool = Spool(spool)

    @property
    def staging(self) -> ObjectStaging:
        """Where devices put bodies by themselves."""
        return self._staging

    def upload(self) -> AbstractContextManager[Upload]:
        """Open a temporary file on this machine."""
        return self._spool.upload()

    def keep(self, upload: Upload, digest: str) -> None:
        """Make an upload the durable blob of its digest; the store shows it whole or not at all."""
        upload.flush()
        with typed_errors("the tensor file cannot be stored"):
            obstore.put(
                self._store,
                _key(digest),
                upload.path,
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def put(self, body: bytes) -> str:
        """Store bytes durably and return their digest."""
        digest = hashlib.sha256(body).hexdigest()
        with self.upload() as upload:
            upload.write(body)
            self.keep(upload, digest)
        return digest

    def read(self, digest: str) -> bytes:
        """Return the bytes of a blob."""
        size = self.size(digest)
        body = BytesIO()
        for place in range(0, size, _READ_BYTES):
            body.write(self._fetch(digest, place, min(_READ_BYTES, size - place)))
        found = body.getvalue()
        if hashlib.sha256(found).hexdigest() != digest:
            raise damaged(digest)
        return found

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a blob from ``start`` to before ``stop``.

        Each chunk is a request of its own: a slow reader holds no connection, and no more memory
        than a chunk.
        """
        size = self.size(digest)
        yield from bytes_between(
            digest, size, start, stop, lambda place, length: self._fetch(digest, place, length)
        )

    def size(self, digest: str) -> int:
        """Return how many bytes a blob has."""
        with typed_errors(f"the tensor file {digest} cannot be read"):
            return obstore.head(self._store, _key(digest))["size"]

    def remove(self, digest: str, changed_before: float = math.inf) -> bool:
        """Delete a blob unless it was stored again in the meantime.

        S3 cannot look and delete in one step: a blob stored again between the two requests is
        lost. The collector asks this only of blobs that nobody touched for a day.
        """
        with typed_errors(f"the tensor file {digest} cannot be removed"):
            try:
                found = obstore.head(self._store, _key(digest))
            except FileNotFoundError:
                return True
            if found["last_modified"].timestamp() >= changed_before:
                return False
            obstore.delete(self._store, _key(digest))
        return True

    def digests(self) -> Iterator[tuple[str, float]]:
        """Yield every blob's digest, in order, and when it was stored."""
        with typed_errors("the tensor files cannot be listed"):
            for batch in obstore.list(self._store, chunk_size=NAMES_AT_ONCE):
                for found in batch:
                    name = found["path"].rpartition("/")[2]
                    if is_digest(name) and found["path"] == _key(name):
                        yield name, found["last_modified"].timestamp()

    def remove_leftovers(self, older_than_s: float) -> None:
        """Delete what was left behind: files of killed processes on this machine, staged objects.

        Parts of a multipart upload that was cut off are the bucket's own to remove.
        """
        self._spool.remove_leftovers(older_than_s)
        self._staging.remove_leftovers(older_than_s)

    def check(self) -> None:
        """Raise unless the bucket answers now."""
        with typed_errors("the bucket cannot be read"):
            for _ in obstore.list(self._store, "readiness", chunk_size=1):
                return

    def _fetch(self, digest: str, place: int, length: int) -> bytes:
        with typed_errors(f"the tensor file {digest} cannot be read"):
            return bytes(obstore.get_range(self._store, _key(digest), start=place, length=length))


def _key(digest: str) -> str:
    return f"{digest[:2]}/{digest}"
