import asyncio
from functools import partial

import pytest

from edge_sdk.errors import RangeNotSatisfiable
from edge_sdk.wire import payload
from server.http.ranges import Conditions, etag
from server.http.tensor_response import from_bytes, from_stream

BODY = bytes(range(256)) * 20_000  # larger than what is kept in memory
DIGEST = payload.digest(BODY)


def from_body(asked):
    def stream(start, stop):
        yield BODY[start:stop]

    return from_stream(stream, len(BODY), DIGEST, asked)


@pytest.fixture(params=["bytes", "stream"])
def respond(request):
    """Answer with the body, by either way."""
    return partial(from_bytes, BODY) if request.param == "bytes" else from_body


def sent(response):
    async def collect():
        return [chunk async for chunk in response.body_iterator]

    return b"".join(asyncio.run(collect()))


def test_a_whole_body_comes_with_its_length_digest_and_entity_tag(respond):
    response = respond(Conditions())
    assert response.status_code == 200
    assert sent(response) == BODY
    assert response.headers["Content-Length"] == str(len(BODY))
    assert response.headers["ETag"] == etag(DIGEST)
    assert response.headers["Accept-Ranges"] == "bytes"
    for name in ("Content-Digest", "Repr-Digest"):
        assert response.headers[name] == payload.content_digest(BODY)
    assert "Content-Range" not in response.headers


def test_a_part_says_where_it_belongs_and_only_the_digest_of_the_whole(respond):
    response = respond(Conditions(range="bytes=100-1999"))
    assert response.status_code == 206
    assert sent(response) == BODY[100:2000]
    assert response.headers["Content-Length"] == "1900"
    assert response.headers["Content-Range"] == f"bytes 100-1999/{len(BODY)}"
    assert response.headers["Repr-Digest"] == payload.content_digest(BODY)
    assert "Content-Digest" not in response.headers


def test_two_parts_make_the_whole(respond):
    first = sent(respond(Conditions(range="bytes=0-4999")))
    rest = sent(respond(Conditions(range="bytes=5000-", if_range=etag(DIGEST))))
    assert first + rest == BODY


def test_the_rest_of_another_body_is_the_whole_of_this_one(respond):
    response = respond(Conditions(range="bytes=5000-", if_range=etag("ab" * 32)))
    assert response.status_code == 200
    assert sent(response) == BODY


def test_a_body_that_the_asker_has_is_not_sent_again(respond):
    response = respond(Conditions(if_none_match=f'"{"ab" * 32}", {etag(DIGEST)}'))
    assert response.status_code == 304
    assert response.body == b""
    assert response.headers["ETag"] == etag(DIGEST)


def test_a_part_beyond_the_end_is_refused(respond):
    with pytest.raises(RangeNotSatisfiable) as caught:
        respond(Conditions(range=f"bytes={len(BODY)}-"))
    assert caught.value.size_bytes == len(BODY)
