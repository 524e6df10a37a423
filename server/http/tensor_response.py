"""Tensor bodies on their way out: whole or in part, streamed, with their digest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from typing import IO

from fastapi.responses import Response, StreamingResponse

from edge_sdk.errors import StorageError
from edge_sdk.wire import payload
from server.http.ranges import Conditions, etag

_CHUNK_BYTES = 1 << 18


def from_bytes(body: bytes, asked: Conditions) -> Response:
    """Send a body; a large one waits on disk, so that slow downloads do not pile up in memory.

    Raises:
        RangeNotSatisfiable: Nothing of the part that is asked for is in the body.
        StorageError: The disk refused.
    """

    def stream(start: int, stop: int) -> Iterator[bytes]:
        return _read(_spooled(body[start:stop]))

    return from_stream(stream, len(body), payload.digest(body), asked)


def from_stream(
    stream: Callable[[int, int], Iterator[bytes]], size_bytes: int, digest: str, asked: Conditions
) -> Response:
    """Send a stored body, the part of it that is asked for, or word that it is known.

    Args:
        stream: Yields the bytes from a start to before a stop.
        size_bytes: Of the whole body.
        digest: SHA-256 of the whole body, 64 hex digits.
        asked: What the request says.

    Raises:
        RangeNotSatisfiable: Nothing of the part that is asked for is in the body.
        StorageError: The body is gone, or it is short and was damaged; a longer one that was
            damaged ends before its last byte.
    """
    headers = {"ETag": etag(digest), "Accept-Ranges": "bytes"}
    if asked.has_body(digest):
        return Response(status_code=304, headers=headers)
    part = asked.part(digest, size_bytes)
    start, stop = part or (0, size_bytes)
    headers |= {
        "Content-Length": str(stop - start),
        "Repr-Digest": payload.content_digest_of(digest),
    }
    if part is None:
        headers["Content-Digest"] = payload.content_digest_of(digest)
    else:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size_bytes}"
    return StreamingResponse(
        _begun(stream(start, stop)),
        status_code=200 if part is None else 206,
        media_type=payload.MEDIA_TYPE,
        headers=headers,
    )


def _begun(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Fetch the first chunk now, while an error can still be the answer."""
    return chain([next(chunks, b"")], chunks)


def _spooled(body: bytes) -> IO[bytes]:
    file = tempfile.SpooledTemporaryFile(max_size=_CHUNK_BYTES)  # noqa: SIM115 - closed when sent
    try:
        file.write(body)
        file.seek(0)
    except OSError as error:
        file.close()
        raise StorageError(f"the slice cannot be written: {error.strerror}") from error
    return file


def _read(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
