"""An example is compact, and equal to another one with the same content."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.text.example import Example


def test_example_takes_five_bytes_per_token():
    example = Example(list(range(100)), [True] * 100)
    assert example.tokens.nbytes + example.is_learned.nbytes == 500


def test_slice_of_a_larger_array_is_not_copied():
    tokens, is_learned = np.arange(9, dtype=np.int32), np.ones(9, dtype=bool)
    example = Example(tokens[2:5], is_learned[2:5])
    assert np.shares_memory(example.tokens, tokens)
    assert np.shares_memory(example.is_learned, is_learned)


def test_examples_are_equal_however_they_were_made():
    assert Example([5, 6], [False, True]) == Example(np.array([5, 6]), np.array([False, True]))


@pytest.mark.parametrize(
    "other",
    [
        Example([5, 7], [False, True], 1),
        Example([5, 6], [True, True], 1),
        Example([5, 6], [False, True], 0),
        Example([5, 6], [False, True]),
        Example([5, 6, 7], [False, True, True], 1),
        [5, 6],
    ],
    ids=["token", "mark", "label", "no label", "length", "type"],
)
def test_examples_that_differ_anywhere_are_not_equal(other):
    assert Example([5, 6], [False, True], 1) != other
