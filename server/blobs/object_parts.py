"""Parts of updates as objects of an S3-compatible store, below a prefix of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import obstore

from server.blobs.object_store import NAMES_AT_ONCE, open_bucket, typed_errors
from server.blobs.parts import Parted, PartFound, read_key
from server.blobs.spool import Upload

_FOLDER = "parts"
_CHUNK_BYTES = 1 << 20


class ObjectParts:
    """Parts in a bucket; see :class:`server.blobs.parts.Parts`.

    Args:
        url: Of the tensor files, ``s3://bucket`` or ``s3://bucket/prefix``; behind that comes
            ``parts/``.
        endpoint: Address of the store; empty means AWS.
    """

    def __init__(self, url: str, endpoint: str) -> None:
        self._store = open_bucket(url, endpoint, _FOLDER)

    def keep(self, body: Parted, index: int, upload: Upload) -> None:
        """Make an upload a part."""
        upload.flush()
        with typed_errors("the part cannot be stored"):
            obstore.put(self._store, body.key(index), upload.path)

    def found(self, body: Parted) -> list[PartFound]:
        """Return what is there of the device for the round."""
        there = []
        with typed_errors("the parts cannot be listed"):
            for batch in obstore.list(self._store, f"{body.place}/", chunk_size=NAMES_AT_ONCE):
                for found in batch:
                    name = read_key(found["path"])
                    if name is not None:
                        part = PartFound(digest=name[0], index=name[1], size_bytes=found["size"])
                        there.append(part)
        return sorted(there, key=lambda part: (part.digest, part.index))

    def stream(self, body: Parted, index: int) -> Iterator[bytes]:
        """Yield the bytes of one part."""
        with typed_errors("the part cannot be read"):
            whole = bytes(obstore.get(self._store, body.key(index)).bytes())
        for start in range(0, len(whole), _CHUNK_BYTES):
            yield whole[start : start + _CHUNK_BYTES]

    def remove(self, body: Parted, found: PartFound) -> None:
        """Delete one part."""
        self._remove(f"{body.place}/{found.digest}/{found.index:05d}")

    def remove_leftovers(self, older_than_s: float) -> None:
        """Delete what was not touched for so long."""
        limit = time.time() - older_than_s
        with typed_errors("the parts cannot be listed"):
            for batch in obstore.list(self._store, chunk_size=NAMES_AT_ONCE):
                for found in batch:
                    if found["last_modified"].timestamp() < limit:
                        self._remove(found["path"])

    def _remove(self, key: str) -> None:
        with typed_errors("a part cannot be removed"):
            obstore.delete(self._store, key)
