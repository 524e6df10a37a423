"""Updates in codes: exact sizes, golden bytes, nothing but the task's own shape is taken."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from edge_sdk.errors import MalformedPayload, NotFinite
from edge_sdk.wire.block_codes import CODES, encoded_bytes
from edge_sdk.wire.payload import adapter_shapes, encode, number_bytes, write_tensors
from edge_sdk.wire.rank_rows import row_shapes
from edge_sdk.wire.update_body import (
    decode_update,
    encode_update,
    update_data_bytes,
    update_limit,
    view_update,
)
from tests.server.tasks import random_arrays, tiny_spec

GOLDEN = Path(__file__).parent / "golden"
ENCODINGS = sorted(CODES)
EVERY = ["wire", *ENCODINGS]
K = 3
MESSAGE = b'{"examples":3,"loss":0.5}'


def spec_of(encoding, **more):
    return tiny_spec(update_encoding=encoding, **more)


def body_of(encoding, seed=1, **more):
    spec = spec_of(encoding, **more)
    return encode_update(random_arrays(spec.adapter, K, seed), spec, 7, MESSAGE)


def header_of(body):
    return json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_bytes_of_an_update_in_codes_never_change(encoding):
    """Devices of an older release must be understood, and digests must repeat."""
    assert body_of(encoding) == (GOLDEN / f"update_{encoding}.safetensors").read_bytes()


@pytest.mark.parametrize("encoding", EVERY)
def test_a_body_has_exactly_the_bytes_of_its_formula(encoding):
    body, spec = body_of(encoding), spec_of(encoding)
    header_bytes = 8 + int.from_bytes(body[:8], "little")
    shapes = row_shapes(spec.adapter, K).values()
    expected = update_data_bytes(shapes, encoding, number_bytes("fp32"))
    assert len(body) == header_bytes + expected
    if encoding != "wire":
        assert expected == sum(encoded_bytes(shape, encoding) for shape in shapes)
        assert header_of(body).keys() == {"__metadata__", "codes", "scales"}
    assert len(body) <= update_limit(spec, K)


@pytest.mark.parametrize("encoding", EVERY)
@pytest.mark.parametrize("wire_dtype", ["fp32", "bf16"])
def test_both_ways_to_read_an_update_agree_and_are_close_to_what_was_sent(encoding, wire_dtype):
    spec = spec_of(encoding, wire_dtype=wire_dtype)
    sent = random_arrays(spec.adapter, K, 1)
    body = encode_update(sent, spec, 7, MESSAGE)
    decoded, message = decode_update(body, spec, K)
    seen = view_update(body, spec, K)
    assert message == MESSAGE
    assert {n: x.shape for n, x in decoded.items()} == adapter_shapes(spec.adapter, K)
    assert len(seen) == len(decoded)
    steps = {"wire": 2**-8, "float16": 2**-11, "int8": 1 / 126, "int4": 1 / 6.9}
    for name, array in decoded.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(seen[name], np.float32), array)
        bound = steps[encoding] * np.abs(sent[name]).max()
        np.testing.assert_allclose(array, sent[name], rtol=0, atol=bound)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_rank_is_coded_by_itself(encoding):
    """One rank a million times as large as the others does not cost them precision."""
    spec = spec_of(encoding, dense=False)
    sent = random_arrays(spec.adapter, K, 1)
    for layer in spec.adapter.layers:
        sent[f"{layer.name}.lora_A"][0] *= 1e6
        sent[f"{layer.name}.lora_B"][:, 0] *= 1e6
    decoded, _ = decode_update(encode_update(sent, spec, 7), spec, K)
    for layer in spec.adapter.layers:
        A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        assert np.abs(decoded[A][1:] - sent[A][1:]).max() < 0.16 * np.abs(sent[A][1:]).max()
        assert (
            np.abs(decoded[B][:, 1:] - sent[B][:, 1:]).max() < 0.16 * np.abs(sent[B][:, 1:]).max()
        )


@pytest.mark.parametrize("encoding", ["int8", "int4"])
def test_the_seed_of_the_work_decides_the_rounding(encoding):
    spec = spec_of(encoding)
    sent = random_arrays(spec.adapter, K, 1)
    assert encode_update(sent, spec, 7) == encode_update(sent, spec, 7)
    assert encode_update(sent, spec, 7) != encode_update(sent, spec, 8)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_update_cut_at_any_length_is_refused(encoding):
    body, spec = body_of(encoding), spec_of(encoding)
    for length in range(len(body)):
        with pytest.raises(MalformedPayload):
            decode_update(body[:length], spec, K)
    with pytest.raises(MalformedPayload):
        decode_update(body + b"\0", spec, K)


@pytest.mark.parametrize("encoding", EVERY)
def test_an_update_of_another_encoding_or_size_is_refused(encoding):
    spec = spec_of(encoding)
    for other in EVERY:
        if other != encoding:
            with pytest.raises(MalformedPayload, match="the task"):
                decode_update(body_of(other), spec, K)
    with pytest.raises(MalformedPayload, match="the task says"):
        decode_update(body_of(encoding), spec, K + 1)


def coded(codes, scales):
    return write_tensors({"codes": codes, "scales": scales}, MESSAGE)


def parts_of(encoding):
    """Codes and scales of a valid update."""
    spec = spec_of(encoding)
    shapes = list(row_shapes(spec.adapter, K).values())
    dtype = CODES[encoding].dtype
    scales = sum(rows * -(-width // 64) for rows, width in shapes)
    codes = sum(encoded_bytes(shape, encoding) for shape in shapes) - 2 * scales
    return np.ones(codes // dtype.itemsize, dtype), np.ones(scales, ml_dtypes.bfloat16)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 3.3e38])
def test_a_scale_that_makes_a_number_infinite_is_refused(encoding, scale):
    codes, scales = parts_of(encoding)
    spec = spec_of(encoding)
    decode_update(coded(codes, scales), spec, K)
    codes[:] = np.array(1000.0, codes.dtype) if encoding == "float16" else 100
    scales[-1] = scale
    with pytest.raises(NotFinite, match=r"score\.bias"):
        decode_update(coded(codes, scales), spec, K)


def test_a_half_number_that_is_not_finite_is_refused():
    codes, scales = parts_of("float16")
    codes[0] = np.inf
    with pytest.raises(NotFinite, match="lora_A"):
        decode_update(coded(codes, scales), spec_of("float16"), K)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_other_tensors_than_codes_and_scales_are_refused(encoding):
    codes, scales = parts_of(encoding)
    spec = spec_of(encoding)
    for tensors in (
        {"codes": codes},
        {"codes": codes, "scales": scales, "more": scales},
        {"codes": codes, "scale": scales},
        {"codes": codes[:-1], "scales": scales},
        {"codes": codes, "scales": scales[:-1]},
        {"codes": codes[None], "scales": scales},
        {"codes": codes, "scales": scales.astype(np.float16)},
        {"codes": codes.astype(np.int16), "scales": scales},
    ):
        with pytest.raises(MalformedPayload):
            decode_update(write_tensors(tensors, MESSAGE), spec, K)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_not_finite_is_refused_by_name_before_it_is_sent(encoding):
    spec = spec_of(encoding)
    sent = random_arrays(spec.adapter, K, 1)
    sent["score.bias"][1] = np.nan
    with pytest.raises(NotFinite, match=r"tensor score\.bias"):
        encode_update(sent, spec, 7)


def test_a_task_that_says_nothing_sends_what_it_always_sent():
    spec = spec_of("wire")
    sent = random_arrays(spec.adapter, K, 1)
    assert encode_update(sent, spec, 7, MESSAGE) == encode(sent, "fp32", MESSAGE)
