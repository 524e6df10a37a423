"""Adapters and slices of a live server: known, in part, and resumed after a cut."""

from __future__ import annotations

import pytest

from edge_sdk.wire import payload

ADAPTER = "/v1/tasks/tiny/adapters/0"
SLICE = "/v1/tasks/tiny/rounds/1/slice"


@pytest.fixture(params=[ADAPTER, SLICE])
def path(request, device) -> str:
    device.check_in()
    return request.param


def test_the_tag_is_the_digest_of_the_body(device, path):
    answer = device.call("GET", path)
    assert answer.headers["ETag"] == f'"{payload.digest(answer.content)}"'
    assert answer.headers["Accept-Ranges"] == "bytes"


def test_what_the_device_has_is_not_sent_again(device, path):
    whole = device.call("GET", path)
    answer = device.call("GET", path, headers={"If-None-Match": whole.headers["ETag"]})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["ETag"] == whole.headers["ETag"]


def test_two_parts_are_the_whole(device, path):
    whole = device.call("GET", path)
    size = len(whole.content)
    tag = {"If-Range": whole.headers["ETag"]}
    first = device.call("GET", path, headers={"Range": "bytes=0-99"})
    rest = device.call("GET", path, headers={"Range": "bytes=100-"} | tag)
    assert (first.status_code, rest.status_code) == (206, 206)
    assert first.headers["Content-Range"] == f"bytes 0-99/{size}"
    assert rest.headers["Content-Range"] == f"bytes 100-{size - 1}/{size}"
    assert first.content + rest.content == whole.content
    assert rest.headers["Repr-Digest"] == whole.headers["Content-Digest"]


def test_the_rest_of_another_body_is_the_whole_of_this_one(device, path):
    headers = {"Range": "bytes=100-", "If-Range": f'"{"0" * 64}"'}
    answer = device.call("GET", path, headers=headers)
    assert answer.status_code == 200
    payload.check_content_digest(answer.content, answer.headers["Content-Digest"])


def test_a_part_beyond_the_end_is_416_with_the_size(device, path):
    size = len(device.call("GET", path).content)
    answer = device.call("GET", path, headers={"Range": f"bytes={size}-"})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == f"bytes */{size}"


@pytest.mark.parametrize("text", ["bytes=0-1,5-6", "bytes=9-1", "items=0-1", "x" * 5000])
def test_a_range_that_is_none_gets_the_whole_body(device, text):
    answer = device.call("GET", ADAPTER, headers={"Range": text})
    assert answer.status_code == 200
    payload.check_content_digest(answer.content, answer.headers["Content-Digest"])
