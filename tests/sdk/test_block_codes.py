"""Codes of 16, 8 and 4 bits: how far off, how many bytes, right on average."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sdk.errors import NotFinite
from edge_sdk.wire.block_codes import (
    BLOCK,
    CODES,
    code_count,
    decode_rows,
    encode_rows,
    encoded_bytes,
    scale_count,
)

TINY = float(np.finfo(np.float32).tiny)
names = st.sampled_from(sorted(CODES))
some_rows = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 3 * BLOCK)),
    elements=st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False),
)


def there_and_back(rows, name, seed=0):
    codes, scales = encode_rows(rows, name, np.random.PCG64(seed))
    return decode_rows(codes, scales, rows.shape, name), codes, scales


def block_steps(rows, name):
    """The step of each number's block: its largest number over the largest code."""
    steps = np.empty(rows.shape)
    for i, row in enumerate(rows):
        for first in range(0, len(row), BLOCK):
            block = slice(first, first + BLOCK)
            steps[i, block] = np.abs(row[block]).max() / CODES[name].largest
    return steps


@given(some_rows, names, st.integers(0, 2**32))
def test_no_number_moves_farther_than_one_step_of_its_own_block(rows, name, seed):
    """A scale is rounded up by less than one part in 128; float16 has 11 bits of it."""
    decoded, _, _ = there_and_back(rows, name, seed)
    step = block_steps(rows, name) * (2**-11 if name == "float16" else 1)
    assert (np.abs(decoded - rows) <= step * (1 + 2**-7) + 256 * TINY).all()


@given(some_rows, names)
def test_bytes_are_what_the_formula_says(rows, name):
    _, codes, scales = there_and_back(rows, name)
    count, width = rows.shape
    bits = {"float16": 16, "int8": 8, "int4": 4}[name]
    of_scales = 2 * count * math.ceil(width / 64)
    assert encoded_bytes(rows.shape, name) == codes.nbytes + scales.nbytes
    assert encoded_bytes(rows.shape, name) == math.ceil(count * width * bits / 8) + of_scales
    assert (len(codes), len(scales)) == (code_count(rows.shape, name), scale_count(rows.shape))


def test_int8_of_a_transformers_layer_takes_less_than_0_27_of_fp32():
    for width in (384, 576, 960, 1536, 2048, 11008):
        assert encoded_bytes((8, width), "int8") < 0.259 * 4 * 8 * width
        assert encoded_bytes((8, width), "int4") < 0.134 * 4 * 8 * width


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_mean_over_many_roundings_is_the_number(name):
    """Unbiased: 4,000 roundings leave less than 5 standard errors of at most half a step."""
    rows = np.random.default_rng(0).normal(size=(1, 100)).astype(np.float32)
    source = np.random.PCG64(1)
    total = np.zeros(rows.shape)
    for _ in range(4000):
        codes, scales = encode_rows(rows, name, source)
        total += decode_rows(codes, scales, rows.shape, name)
    bound = 5 * 0.5 * block_steps(rows, name) / math.sqrt(4000)
    assert (np.abs(total / 4000 - rows) <= 1.01 * bound).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_numbers_far_below_a_step_are_not_always_lost(name):
    rows = np.full((1, BLOCK), 1e-3, np.float32)
    rows[0, 0] = 1.0
    decoded = [there_and_back(rows, name, seed)[0][0, 1:].mean() for seed in range(500)]
    assert np.mean(decoded) == pytest.approx(1e-3, rel=0.2)


def test_blocks_never_mix_two_rows():
    """A row of large numbers leaves its neighbour's precision alone."""
    small = np.random.default_rng(0).normal(size=70).astype(np.float32)
    for name in CODES:
        both = np.stack([1e6 * small, small])
        alone, _, _ = there_and_back(small[None], name)
        step = np.abs(small).max() / CODES[name].largest
        assert np.abs(there_and_back(both, name)[0][1] - small).max() <= 1.01 * step
        assert np.abs(alone - small).max() <= 1.01 * step


@pytest.mark.parametrize("name", sorted(CODES))
def test_zeros_stay_zeros(name):
    rows = np.zeros((2, 65), np.float32)
    rows[0, 0] = 1.0
    decoded, _, _ = there_and_back(rows, name)
    np.testing.assert_array_equal(decoded.ravel()[1:], 0)


@pytest.mark.parametrize("name", sorted(CODES))
def test_numbers_below_all_normal_ones_become_zero_and_the_rest_of_the_row_stays(name):
    rows = np.zeros((1, 2 * BLOCK), np.float32)
    rows[0, 0], rows[0, BLOCK] = 1e-44, 0.5
    decoded, _, _ = there_and_back(rows, name)
    assert decoded[0, 0] == 0
    assert decoded[0, BLOCK] == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("name", sorted(CODES))
@pytest.mark.parametrize("number", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(name, number):
    rows = np.ones((2, 70), np.float32)
    rows[1, 69] = number
    with pytest.raises(NotFinite):
        encode_rows(rows, name, np.random.PCG64(0))


def test_a_number_that_no_scale_reaches_is_refused():
    largest = np.array([[np.finfo(np.float32).max]], np.float32)
    with pytest.raises(NotFinite, match="beyond"):
        encode_rows(largest, "float16", np.random.PCG64(0))
    assert there_and_back(largest, "int8")[0][0, 0] == pytest.approx(3.4e38, rel=0.02)


@pytest.mark.parametrize("name", sorted(CODES))
def test_the_same_stream_gives_the_same_bytes(name):
    rows = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32)
    _, codes, scales = there_and_back(rows, name, seed=5)
    _, again, same_scales = there_and_back(rows, name, seed=5)
    assert (codes.tobytes(), scales.tobytes()) == (again.tobytes(), same_scales.tobytes())
    if name != "float16":
        assert there_and_back(rows, name, seed=6)[1].tobytes() != codes.tobytes()
