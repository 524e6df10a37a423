"""A short run of the wire fuzzer; ``python -m bench.wire_fuzz`` is the long one."""

from __future__ import annotations

from collections import deque
from itertools import islice

import pytest

from bench.wire_fuzz import Tally, Untyped, feed, inputs
from bench.wire_targets import Target, all_targets
from edge_sdk.errors import MalformedMessage, MalformedPayload
from edge_sdk.wire.messages import Problem, UpdateReport, decode_message
from edge_sdk.wire.payload import decode

X = b'"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


def tensor_file(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(4)


def test_every_sample_is_accepted_as_it_is():
    for target in all_targets():
        for sample in target.samples:
            target.decode(sample)


def test_damaged_bytes_of_every_decoder_end_in_a_value_or_a_typed_error():
    tally = Tally()
    for target, body in islice(inputs(all_targets(), seed=1), 3000):
        feed(target, body, tally)
    assert tally.inputs == 3000
    assert tally.accepted > 300
    assert {"malformed_message", "malformed_payload", "digest_mismatch"} < tally.kinds.keys()
    assert tally.slowest_s < 1


def test_a_seed_repeats_its_inputs():
    def bodies(seed):
        return [body for _, body in islice(inputs(all_targets(), seed), 100)]

    assert bodies(3) == bodies(3) != bodies(4)


def test_a_decoder_that_breaks_is_told_from_one_that_refuses():
    broken = Target(name="broken", samples=[b"{}"], decode=lambda body: body.decode().index("{"))
    bodies = islice(inputs([broken], seed=0), 1000)
    with pytest.raises(Untyped, match="broken: ValueError"):
        deque((feed(target, body, Tally()) for target, body in bodies), maxlen=0)


@pytest.mark.parametrize("value", [b"null", b"{}", b'{"other": "x"}'])
def test_a_tensor_file_without_a_message_has_an_empty_one(value):
    body = tensor_file(b'{"__metadata__": %s, %s}' % (value, X))
    assert decode(body, {"x": (1,)})[1] == b""


@pytest.mark.parametrize("text", [b'{"a":' + b"[" * 100_000, b'{"a":' * 100_000])
@pytest.mark.parametrize("kind", [UpdateReport, Problem])
def test_a_message_nested_beyond_measure_is_malformed(text, kind):
    with pytest.raises(MalformedMessage, match="nested too deeply"):
        decode_message(kind, text)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000])
def test_a_header_nested_beyond_measure_is_malformed(text):
    with pytest.raises(MalformedPayload):
        decode(tensor_file(text), {"x": (1,)})
