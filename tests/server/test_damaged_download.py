"""A damaged tensor file is never downloaded as if it were whole; see test_tensor_response.py."""

import asyncio
from functools import partial

import pytest

from edge_sdk.errors import StorageError
from server.blobs.blobs import CHUNK_BYTES, BlobFolder
from server.http.ranges import Conditions
from server.http.tensor_response import from_bytes, from_stream

LONG = bytes(3 * CHUNK_BYTES)


def stored(folder, body):
    """A blob and what asks for all of it."""
    blobs = BlobFolder(folder)
    digest = blobs.put(body)
    ask = partial(from_stream, partial(blobs.stream, digest), len(body), digest, Conditions())
    return blobs.path(digest), ask


def sent(response):
    """All that a response sends before it ends or breaks off."""

    async def collect(into):
        async for chunk in response.body_iterator:
            into.append(chunk)

    chunks = []
    try:
        asyncio.run(collect(chunks))
    except StorageError as error:
        return b"".join(chunks), error
    return b"".join(chunks), None


@pytest.mark.parametrize("body", [b"", b"short", LONG], ids=len)
def test_a_body_is_sent_whole_with_its_length(tmp_path, body):
    _, ask = stored(tmp_path, body)
    for response in (ask(), from_bytes(body, Conditions())):
        assert response.headers["Content-Length"] == str(len(body))
        assert sent(response) == (body, None)


@pytest.mark.parametrize("damaged", [None, b"sh0rt", b"shor"])
def test_a_short_body_that_was_damaged_is_an_error_before_anything_is_sent(tmp_path, damaged):
    path, ask = stored(tmp_path, b"short")
    path.unlink() if damaged is None else path.write_bytes(damaged)
    with pytest.raises(StorageError, match=path.name):
        ask()


def test_a_long_body_that_was_damaged_breaks_off_before_its_announced_length(tmp_path):
    path, ask = stored(tmp_path, LONG)
    path.write_bytes(b"\1" + LONG[1:])
    body, error = sent(ask())
    assert path.name in str(error)
    assert 0 < len(body) < len(LONG)
