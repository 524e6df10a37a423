from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import StorageError
from edge_sdk.wire.task import DenseSpec
from server.aggregation.optimizer_state import decode_state, empty_state, encode_state
from tests.server.tasks import tiny_spec

WITH_MEMORY = ["momentum", "adam"]
Q = "model.layers.0.self_attn.q_proj"


def a_spec(optimizer: str = "adam", r: int = 4):
    return tiny_spec(server_optimizer=optimizer, r=r, sketch_sizes=[1])


def a_state(spec, seed: int = 0):
    rng = np.random.default_rng(seed)
    return {
        name: np.abs(9 * rng.normal(size=array.shape)).astype(array.dtype)
        for name, array in empty_state(spec).items()
    }


BODY = encode_state(a_state(a_spec()))


@pytest.mark.parametrize("optimizer", WITH_MEMORY)
@pytest.mark.parametrize("r", [1, 8])
def test_a_state_survives_encoding_bit_for_bit(optimizer, r):
    spec = a_spec(optimizer, r)
    state = a_state(spec)
    body = encode_state(state)
    found = decode_state(body, spec)
    assert found.keys() == state.keys()
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert encode_state(found) == body


def test_a_state_has_a_row_per_rank_and_one_for_each_dense_parameter():
    state = empty_state(a_spec("adam"))
    shapes = {name: (array.shape, array.dtype) for name, array in state.items()}
    assert shapes[f"{Q}.lora_A.momentum"] == ((4, 12), np.float32)
    assert shapes[f"{Q}.lora_B.root_square"] == ((4, 16), np.float32)
    assert shapes[f"{Q}.lora_B.steps"] == ((4, 1), np.int64)
    assert shapes["score.weight.momentum"] == ((1, 24), np.float32)
    assert shapes["score.bias.steps"] == ((1, 1), np.int64)
    assert all((array == 0).all() for array in state.values())
    assert len(state) == 6 * 3


def test_a_task_that_averages_has_nothing_to_remember():
    assert empty_state(a_spec("average")) == {}


def test_a_dense_parameter_named_like_a_part_of_the_state_does_not_hide_it():
    spec = a_spec("adam")
    names = [f"{Q}.lora_A.steps", "score.bias.momentum"]
    dense = [*spec.adapter.dense, *(DenseSpec(name=name, shape=[3]) for name in names)]
    wider = replace(spec, adapter=replace(spec.adapter, dense=dense))
    assert len(empty_state(wider)) == 8 * 3


@pytest.mark.parametrize(
    "other", [a_spec("momentum"), a_spec("average"), a_spec(r=5), tiny_spec(r=4, sketch_sizes=[1])]
)
def test_the_state_of_another_task_is_refused(other):
    with pytest.raises(StorageError, match="damaged"):
        decode_state(BODY, other)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, len(BODY) - 1])
def test_a_body_that_was_cut_is_refused(kept):
    with pytest.raises(StorageError, match="damaged"):
        decode_state(BODY[:kept], a_spec())


@given(st.binary(max_size=200))
def test_bytes_that_are_no_state_are_refused(body):
    with pytest.raises(StorageError, match="damaged"):
        decode_state(body, a_spec())


@given(st.integers(0, len(BODY) - 1), st.integers(1, 255))
@settings(max_examples=200)
def test_a_flipped_byte_is_refused_or_leaves_a_state_that_can_be_used(at, flip):
    """Which of the two is the digest's business; nothing else can happen."""
    body = bytearray(BODY)
    body[at] ^= flip
    try:
        state = decode_state(bytes(body), a_spec())
    except StorageError:
        return
    assert all(np.isfinite(array).all() for array in state.values())
    assert {name: array.shape for name, array in state.items()} == {
        name: array.shape for name, array in empty_state(a_spec()).items()
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f"{Q}.lora_A.momentum", np.nan),
        (f"{Q}.lora_B.root_square", np.inf),
        (f"{Q}.lora_B.root_square", -1.0),
        (f"{Q}.lora_A.steps", -1),
    ],
)
def test_numbers_no_optimizer_leaves_behind_are_refused(name, value):
    state = a_state(a_spec())
    state[name][0, 0] = value
    with pytest.raises(StorageError, match="lora_"):
        decode_state(encode_state(state), a_spec())


def test_a_negative_momentum_is_an_ordinary_one():
    state = a_state(a_spec())
    state[f"{Q}.lora_A.momentum"][:] = -3.0
    found = decode_state(encode_state(state), a_spec())
    assert (found[f"{Q}.lora_A.momentum"] == -3.0).all()


@pytest.mark.parametrize(
    ("ending", "dtype"), [("momentum", np.float64), ("momentum", np.int32), ("steps", np.int32)]
)
def test_another_number_format_is_refused(ending, dtype):
    state = a_state(a_spec())
    state[f"{Q}.lora_A.{ending}"] = state[f"{Q}.lora_A.{ending}"].astype(dtype)
    with pytest.raises(StorageError, match=f"lora_A.{ending} is"):
        decode_state(safetensors.numpy.save(state), a_spec())


def test_another_shape_of_the_same_size_is_refused():
    state = a_state(a_spec())
    name = f"{Q}.lora_A.momentum"
    state[name] = np.ascontiguousarray(state[name].T)
    with pytest.raises(StorageError, match=r"\(12, 4\), not F32 \(4, 12\)"):
        decode_state(encode_state(state), a_spec())
