"""Staged updates as objects of an S3-compatible store, below a prefix of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import obstore

from edge_sdk.errors import DigestMismatch, EdgeError, NotFound, TooLarge
from server.blobs.blobs import CHUNK_BYTES
from server.blobs.object_store import NAMES_AT_ONCE, open_bucket, typed_errors
from server.blobs.staging import EXPIRES_S, Stage

_FOLDER = "staged"
_WHAT = "the staged update cannot be read"


class ObjectStaging:
    """Objects that devices write to signed addresses; see :class:`server.blobs.staging.Staging`.

    Args:
        url: Of the tensor files, ``s3://bucket`` or ``s3://bucket/prefix``; behind that comes
            ``staged/``.
        endpoint: Address of the store; empty means AWS.
    """

    def __init__(self, url: str, endpoint: str) -> None:
        self._store = open_bucket(url, endpoint, _FOLDER)

    def sign(self, stage: Stage) -> str:
        """Return a secret address that takes one kind of request, ``PUT``, to one place."""
        with typed_errors("no address can be signed"):
            return obstore.sign(self._store, "PUT", stage.key, timedelta(seconds=EXPIRES_S))

    def fetch(self, stage: Stage, size_bytes: int, limit: int) -> Iterator[bytes]:
        """Yield what a device put into its place, bounded before and while it is read."""
        found = self._size(stage)
        if found > limit:
            self.remove(stage)
            raise TooLarge(f"the staged update has {found} bytes; this one may have {limit}")
        if found != size_bytes:
            raise DigestMismatch(
                f"the staged update has {found} bytes but was announced with {size_bytes}: "
                "send it again"
            )
        for start in range(0, found, CHUNK_BYTES):
            length = min(CHUNK_BYTES, found - start)
            with typed_errors(_WHAT):
                chunk = obstore.get_range(self._store, stage.key, start=start, length=length)
            yield bytes(chunk)

    def remove(self, stage: Stage) -> None:
        """Empty a place, or leave that to :meth:`remove_leftovers`."""
        with suppress(EdgeError):
            self._remove(stage.key)

    def remove_leftovers(self, older_than_s: float) -> None:
        """Delete what devices put there and nobody fetched.

        Raises:
            StorageError: The store refused.
            ServerBusy: It cannot be reached now.
        """
        limit = time.time() - older_than_s
        with typed_errors("the staged updates cannot be listed"):
            for batch in obstore.list(self._store, chunk_size=NAMES_AT_ONCE):
                for found in batch:
                    if found["last_modified"].timestamp() < limit:
                        self._remove(found["path"])

    def _size(self, stage: Stage) -> int:
        with typed_errors(_WHAT):
            try:
                return obstore.head(self._store, stage.key)["size"]
            except FileNotFoundError:
                raise NotFound("there is no staged update of this device: send it again") from None

    def _remove(self, key: str) -> None:
        with typed_errors("a staged update cannot be removed"):
            obstore.delete(self._store, key)
