"""Tensor bodies: golden bytes, every damage refused, no torch needed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sdk.errors import DigestMismatch, MalformedPayload, NotFinite
from edge_sdk.wire.payload import (
    adapter_shapes,
    body_limit,
    check_content_digest,
    content_digest,
    decode,
    digest,
    encode,
)
from edge_sdk.wire.task import AdapterSpec, DenseSpec, LayerSpec

GOLDEN = Path(__file__).parent / "golden"
ADAPTER = AdapterSpec(
    r=2,
    lora_alpha=4,
    target_modules=["q_proj"],
    layers=[LayerSpec(name="model.q_proj", d_in=3, d_out=2)],
    dense=[DenseSpec(name="score.weight", shape=[2, 2])],
)
SHAPES = {"model.q_proj.lora_A": (2, 3), "model.q_proj.lora_B": (2, 2), "score.weight": (2, 2)}
MESSAGE = b'{"examples":3,"loss":0.5}'
VALUES = [0.0, -0.0, 1.0, -1.5, 1 / 3, 1e-40, 3.3e38, -(2.0**-126), 65504.0, 1.00390625]


def golden_arrays() -> dict[str, np.ndarray]:
    numbers = iter([*VALUES, 0.1, 0.2, 0.3, 0.4])
    return {
        name: np.array([next(numbers) for _ in range(np.prod(shape))], np.float32).reshape(shape)
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_bytes_of_a_body_never_change(dtype):
    """Devices of an older release must be understood, and digests must repeat."""
    golden = (GOLDEN / f"body_{dtype}.safetensors").read_bytes()
    assert encode(golden_arrays(), dtype, MESSAGE) == golden
    arrays, message = decode(golden, SHAPES, dtype)
    assert message == MESSAGE
    for name, array in golden_arrays().items():
        bf16 = torch.tensor(array).bfloat16().float().numpy()
        np.testing.assert_array_equal(arrays[name], array if dtype == "fp32" else bf16)
        assert arrays[name].dtype == np.float32


def test_the_names_and_shapes_of_a_body_are_those_of_the_task():
    assert adapter_shapes(ADAPTER, 2) == SHAPES
    assert list(adapter_shapes(ADAPTER, 2)) == list(SHAPES)
    assert adapter_shapes(ADAPTER, 1)["model.q_proj.lora_B"] == (2, 1)


named_arrays = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
        lambda name: name != "__metadata__"
    ),
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=2, max_side=4),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
    max_size=4,
)


@given(named_arrays, st.text(max_size=30))
def test_what_is_decoded_is_what_was_encoded(arrays, message):
    shapes = {name: array.shape for name, array in arrays.items()}
    decoded, said = decode(encode(arrays, "fp32", message.encode()), shapes, "fp32")
    assert said == message.encode()
    assert decoded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(decoded[name].view(np.uint32), array.view(np.uint32))


@given(st.integers(0, 2**32 - 1))
def test_bf16_rounds_as_torch_does(bits):
    number = np.array([bits], np.uint32).view(np.float32)
    expected = torch.from_numpy(number.copy()).bfloat16().float().numpy()
    if not np.isfinite(expected).all():
        return
    decoded, _ = decode(encode({"x": number}, "bf16"), {"x": (1,)}, "bf16")
    np.testing.assert_array_equal(decoded["x"].view(np.uint32), expected.view(np.uint32))


def test_a_number_too_large_for_bf16_is_refused_where_it_arrives():
    body = encode({"x": np.array([3.4e38], np.float32)}, "bf16")
    with pytest.raises(NotFinite, match="tensor x holds NaN or infinity"):
        decode(body, {"x": (1,)}, "bf16")


def test_an_array_that_is_not_contiguous_or_wider_is_encoded_by_value():
    whole = np.arange(12, dtype=np.float64).reshape(3, 4)
    decoded, _ = decode(encode({"x": whole[:, ::2]}), {"x": (3, 2)})
    np.testing.assert_array_equal(decoded["x"], whole[:, ::2])


def test_the_order_of_the_arrays_does_not_change_the_bytes():
    arrays = golden_arrays()
    assert encode(dict(reversed(arrays.items()))) == encode(arrays)


def test_a_body_is_never_larger_than_its_limit():
    for k in (1, 2):
        arrays = {name: np.zeros(shape) for name, shape in adapter_shapes(ADAPTER, k).items()}
        assert len(encode(arrays, "fp32", b"x" * 1000)) <= body_limit(ADAPTER, k)
    per_rank = 8  # in a slice that says which ranks it holds
    assert body_limit(ADAPTER, 2) - body_limit(ADAPTER, 1) == 4 * (3 + 2) + per_rank


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_body_cut_at_any_length_is_refused(dtype):
    body = encode(golden_arrays(), dtype, MESSAGE)
    for length in range(len(body)):
        with pytest.raises(MalformedPayload):
            decode(body[:length], SHAPES, dtype)
    with pytest.raises(MalformedPayload):
        decode(body + b"\0", SHAPES, dtype)


def test_any_flipped_byte_is_refused_by_the_digest():
    body = encode(golden_arrays(), "bf16", MESSAGE)
    header = content_digest(body)
    assert check_content_digest(body, header) == digest(body) == hashlib.sha256(body).hexdigest()
    for i in range(len(body)):
        damaged = body[:i] + bytes([body[i] ^ 0x10]) + body[i + 1 :]
        with pytest.raises(DigestMismatch, match="it changed on the way, send it again"):
            check_content_digest(damaged, header)


@given(st.integers(0, 2000), st.integers(1, 255))
def test_a_damaged_body_is_refused_or_decodes_to_finite_numbers_of_the_right_shape(place, flip):
    """Without a digest: never a crash, never another shape."""
    body = encode(golden_arrays(), "fp32", MESSAGE)
    place %= len(body)
    damaged = body[:place] + bytes([body[place] ^ flip]) + body[place + 1 :]
    try:
        arrays, _ = decode(damaged, SHAPES)
    except (MalformedPayload, NotFinite):
        return
    assert {name: array.shape for name, array in arrays.items()} == SHAPES
    assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "sha-256=abc",
        "sha-256=:not base64!:",
        "md5=:AAAA:",
        "sha-256=:AAAA:",
        "sha-256=::",
        "sha-256=:é:",
    ],
)
def test_a_missing_or_malformed_digest_is_refused(header):
    with pytest.raises(DigestMismatch):
        check_content_digest(b"body", header)


def wrong(name: str, array: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays = golden_arrays()
    arrays[name] = array
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "has 0 tensors, the task 3"),
        (wrong("score.weight", None), "first difference: 'score.weight'"),
        (wrong("extra", np.zeros(1)), "has 4 tensors, the task 3; first difference: 'extra'"),
        (wrong("score.weight", np.zeros((4, 1))), r"score.weight is F32 \(4, 1\)"),
        (wrong("score.weight", np.zeros(4)), r"the task says F32 \(2, 2\)"),
        (wrong("model.q_proj.lora_A", np.zeros((3, 2))), r"lora_A is F32 \(3, 2\)"),
    ],
)
def test_other_names_or_shapes_than_the_tasks_are_refused(arrays, text):
    with pytest.raises(MalformedPayload, match=text):
        decode(encode(arrays), SHAPES)


def test_another_number_format_than_the_tasks_is_refused():
    for dtype, other in (("fp32", "bf16"), ("bf16", "fp32")):
        with pytest.raises(MalformedPayload, match=r"is (F32|BF16) .* the task says (F32|BF16)"):
            decode(encode(golden_arrays(), dtype), SHAPES, other)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_single_number_that_is_not_finite_is_refused_by_name(number, dtype):
    arrays = golden_arrays()
    arrays["model.q_proj.lora_B"][1, 1] = number
    with pytest.raises(NotFinite, match=r"model\.q_proj\.lora_B"):
        decode(encode(arrays, dtype), SHAPES, dtype)


def header_of(content: object) -> bytes:
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        b"PK\x03\x04 a pickled zip",
        header_of([]),
        header_of({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header_of({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header_of({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 60]}}),
        (1 << 62).to_bytes(8, "little"),
    ],
)
def test_bytes_that_are_no_safetensors_are_refused(body):
    with pytest.raises(MalformedPayload):
        decode(body, {"x": (1,)})


def test_a_tensor_named_twice_is_refused():
    one = '"x": {"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
    text = ("{" + one % (0, 4) + ", " + one % (4, 8) + "}").encode()
    body = len(text).to_bytes(8, "little") + text + b"\0" * 8
    with pytest.raises(MalformedPayload):
        decode(body, {"x": (1,)})


def test_bodies_are_read_and_written_without_torch():
    program = """
import sys
import numpy as np
from edge_sdk.wire.payload import decode, encode
body = encode({"x": np.ones((2, 2), np.float32)}, "bf16", b"{}")
arrays, _ = decode(body, {"x": (2, 2)}, "bf16")
assert arrays["x"].sum() == 4
heavy = {"torch", "transformers", "peft", "bitsandbytes"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
