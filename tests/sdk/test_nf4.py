"""NF4 bytes and values are those of bitsandbytes, and decode from any place."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from bitsandbytes import functional as bnb
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.lean.nf4 import (
    decode_nf4,
    decode_nf4_plain,
    dynamic_code,
    quantize_nf4,
)
from edge_sdk.model.nf4_code import NF4_CODE

SHAPES = [
    (64, 64),
    (7, 32),
    (300, 960),
    (2048, 576),
    (5, 13),
    (3, 22),
    (1, 1),
    (1, 130),
    (70, 3000),
]


def matrix(shape, dtype=torch.float32, seed=0):
    """Return random weights whose rows differ widely in size, as those of real layers do."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (2 * torch.rand(shape[0], 1, generator=generator) - 3)
    return (torch.randn(shape, generator=generator) * sizes).to(dtype)


def quantize_as_bitsandbytes(weight):
    """Return packed bytes, absmax after its own quantization, and the values in fp32.

    The matrix is taken as one row: with rows of another multiple of 16 than of 64 numbers, the
    AVX-512 kernel of bitsandbytes takes the magnitudes of the wrong blocks.
    """
    packed, state = bnb.quantize_4bit(
        weight.reshape(1, -1), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    state.dtype = torch.float32
    return packed.view(-1), absmax, bnb.dequantize_4bit(packed, state).view(weight.shape)


def decoded(weight, dtype=torch.float32):
    return decode_nf4(*quantize_nf4(weight), torch.empty(weight.shape, dtype=dtype))


def test_codes_are_those_of_bitsandbytes():
    assert torch.equal(torch.tensor(NF4_CODE), bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(torch.tensor(dynamic_code()), bnb.create_dynamic_map())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_and_values_equal_those_of_bitsandbytes(shape, dtype):
    for seed in range(5):
        weight = matrix(shape, dtype, seed)
        packed, absmax = quantize_nf4(weight)
        expected_packed, expected_absmax, expected = quantize_as_bitsandbytes(weight)
        assert torch.equal(packed, expected_packed)
        assert torch.equal(absmax, expected_absmax)
        assert torch.equal(decoded(weight), expected)


def test_rows_of_whole_blocks_equal_bitsandbytes_matrix_for_matrix():
    weight = matrix((96, 192), torch.bfloat16)
    packed, state = bnb.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    for dtype in (torch.float32, torch.bfloat16):
        state.dtype = dtype
        assert torch.equal(decoded(weight, dtype), bnb.dequantize_4bit(packed, state))


def test_ties_and_zeros_are_rounded_as_bitsandbytes_rounds_them():
    code = torch.tensor(NF4_CODE)
    ties = torch.cat([(code[:-1] + code[1:]) / 2, torch.zeros(48), torch.ones(1)])
    weight = torch.stack([ties, -ties, torch.zeros(64), ties * 0.37, torch.full((64,), -0.0)])
    packed, absmax = quantize_nf4(weight)
    expected_packed, expected_absmax, _ = quantize_as_bitsandbytes(weight)
    assert torch.equal(packed, expected_packed)
    assert torch.equal(absmax, expected_absmax)


def test_quantizing_leaves_the_matrix_as_it_was():
    weight = matrix((70, 96))
    before = weight.clone()
    quantize_nf4(weight)
    assert torch.equal(weight, before)


def test_matrix_of_many_chunks_is_the_matrix_of_its_blocks():
    """Chunks leave no seam: absmax of a block depends on that block and the mean alone."""
    weight = matrix((1500, 320))
    _, absmax, expected = quantize_as_bitsandbytes(weight)
    assert absmax.numel() == 7500
    assert torch.equal(decoded(weight), expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_stretch_decodes_to_its_part_of_the_whole(data):
    rows, d_in = data.draw(st.sampled_from([(9, 32), (5, 13), (300, 480), (4, 64)]))
    packed, absmax = quantize_nf4(matrix((rows, d_in)))
    whole = decode_nf4_plain(packed, absmax, torch.empty(rows * d_in))
    offset = data.draw(st.integers(0, rows * d_in - 1))
    size = data.draw(st.integers(1, rows * d_in - offset))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    out = torch.full((size + 2,), 7.0, dtype=dtype)
    returned = decode_nf4(packed, absmax, out[1:-1], offset)
    assert returned.data_ptr() == out[1:].data_ptr()
    assert torch.equal(out[1:-1], whole[offset : offset + size].to(dtype))
    assert out[0] == out[-1] == 7


def test_no_heavy_library_is_imported():
    code = (
        "import sys, edge_sdk.lean.nf4, edge_sdk.lean.prepared\n"
        "print([x for x in ('transformers', 'peft', 'bitsandbytes') if x in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
