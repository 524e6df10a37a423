"""Tensor bodies on their way out: streamed from a file, with their digest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fastapi.responses import StreamingResponse

from edge_sdk.errors import StorageError
from edge_sdk.wire import payload

_CHUNK_BYTES = 1 << 20


def from_bytes(body: bytes) -> StreamingResponse:
    """Send a body; a large one waits on disk, so that slow downloads do not pile up in memory.

    Raises:
        StorageError: The disk refused.
    """
    file = tempfile.SpooledTemporaryFile(max_size=_CHUNK_BYTES)  # noqa: SIM115 - closed when sent
    try:
        file.write(body)
        file.seek(0)
    except OSError as error:
        file.close()
        raise StorageError(f"the slice cannot be written: {error.strerror}") from error
    return _stream(file, len(body), payload.content_digest(body))


def from_file(path: Path, size_bytes: int, digest: str) -> StreamingResponse:
    """Send a stored tensor file.

    Args:
        path: Of the file.
        size_bytes: Of the file.
        digest: Its SHA-256 as it was stored, 64 hex digits.

    Raises:
        StorageError: The file is gone, or no longer of its size.
    """
    try:
        found = path.stat().st_size
        file = path.open("rb")
    except OSError as error:
        raise StorageError(f"the tensor file {digest} cannot be read: {error.strerror}") from error
    if found != size_bytes:
        file.close()
        raise StorageError(f"the tensor file {digest} was damaged on disk: restore it")
    return _stream(file, size_bytes, payload.content_digest_of(digest))


def _stream(file: IO[bytes], size_bytes: int, content_digest: str) -> StreamingResponse:
    def chunks() -> Iterator[bytes]:
        with file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    headers = {"Content-Digest": content_digest, "Content-Length": str(size_bytes)}
    return StreamingResponse(chunks(), media_type=payload.MEDIA_TYPE, headers=headers)
