"""Which part of a body a request asks for, as RFC 9110 has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import RangeNotSatisfiable
from server.http.ranges import Conditions, etag

DIGEST = "ab" * 32
SIZE = 1000


def part(text: str | None, if_range: str | None = None):
    return Conditions(range=text, if_range=if_range).part(DIGEST, SIZE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-499", (0, 500)),
        ("bytes=500-", (500, 1000)),
        ("bytes=999-", (999, 1000)),
        ("bytes=-1", (999, 1000)),
        ("bytes=-5000", (0, 1000)),
        ("bytes=900-5000", (900, 1000)),
        (" BYTES=1-2 ", (1, 3)),
    ],
)
def test_a_part_is_what_the_standard_calls_it(text, expected):
    assert part(text) == expected


@pytest.mark.parametrize(
    "text",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=5-4", "bytes=0-1,3-4", "lines=0-1", "bytes=a-",
     "bytes=1-" + "9" * 30],
)  # fmt: skip
def test_what_is_no_single_range_is_answered_with_the_whole_body(text):
    assert part(text) is None


@pytest.mark.parametrize("text", ["bytes=1000-", "bytes=5000-6000", "bytes=-0"])
def test_a_part_beyond_the_end_is_refused_and_says_how_long_the_body_is(text):
    with pytest.raises(RangeNotSatisfiable, match="1000") as caught:
        part(text)
    assert caught.value.size_bytes == SIZE


@pytest.mark.parametrize("tag", ['"' + "cd" * 32 + '"', f'W/"{DIGEST}"', "Sat, 29 Oct 1994", "*"])
def test_the_rest_of_another_body_is_not_sent(tag):
    assert part("bytes=10-", if_range=tag) is None
    assert part("bytes=5000-", if_range=tag) is None
    assert part("bytes=10-", if_range=etag(DIGEST)) == (10, SIZE)


@pytest.mark.parametrize(
    ("text", "has_it"),
    [
        (None, False),
        ("", False),
        (f'"{DIGEST}"', True),
        (f'W/"{DIGEST}"', True),
        (f'"x", "{DIGEST}"', True),
        ("*", True),
        ('"x"', False),
        (DIGEST, False),
    ],
)
def test_a_known_body_is_recognized_by_its_tag(text, has_it):
    assert Conditions(if_none_match=text).has_body(DIGEST) is has_it


@given(st.integers(0, 2 * SIZE), st.integers(0, 2 * SIZE))
def test_every_part_lies_inside_the_body(first, last):
    try:
        found = part(f"bytes={first}-{last}")
    except RangeNotSatisfiable:
        assert first >= SIZE
        return
    if found is None:
        assert last < first
    else:
        assert found == (first, min(last, SIZE - 1) + 1)
