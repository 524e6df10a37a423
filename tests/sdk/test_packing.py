"""Packed batches: what is learned, from what, and how a step is split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import DataError
from edge_sdk.lean.packing import PackedBatch, micro_batches, pack
from edge_sdk.text.example import Example

flags = st.lists(st.booleans(), max_size=12)


def numbered(learned: list[list[bool]]) -> list[Example]:
    """Return examples whose every token id occurs once, so that an id says where it is from."""
    examples, start = list[Example](), 0
    for is_learned in learned:
        examples.append(Example(list(range(start, start + len(is_learned))), is_learned))
        start += len(is_learned)
    return examples


def all_learned(*lengths: int) -> list[Example]:
    """Return examples that take this many tokens of a batch each."""
    return numbered([[True] * (length + 1) for length in lengths])


learnable_steps = (
    st.lists(flags, min_size=1, max_size=12).filter(lambda step: any(any(x[1:]) for x in step))
).map(numbered)


def transitions(examples: list[Example]) -> list[tuple[int, int]]:
    """Return every learned token that has a predecessor, after it."""
    return [
        (int(example.tokens[i - 1]), int(example.tokens[i]))
        for example in examples
        for i in range(1, len(example.tokens))
        if example.is_learned[i]
    ]


def learned_in(batch: PackedBatch) -> list[tuple[int, int]]:
    return list(zip(batch.tokens[batch.places].tolist(), batch.targets.tolist(), strict=True))


def owners(batch: PackedBatch, examples: list[Example]) -> list[int]:
    """Return which example each sequence of a batch is the beginning of."""
    starts = [next(iter(example.tokens), None) for example in examples]
    ends = torch.tensor(batch.lengths).cumsum(0).tolist()
    found = list[int]()
    for length, end in zip(batch.lengths, ends, strict=True):
        sequence = batch.tokens[end - length : end].tolist()
        found.append(starts.index(sequence[0]))
        assert sequence == examples[found[-1]].tokens[:length].tolist()
    return found


@given(learnable_steps)
def test_every_learned_token_but_a_first_is_a_target_once_after_its_predecessor(examples):
    assert learned_in(pack(examples)) == transitions(examples)


@given(learnable_steps)
def test_sequences_fill_the_batch_and_positions_restart(examples):
    batch = pack(examples)
    assert sum(batch.lengths) == len(batch.tokens)
    assert min(batch.lengths) > 0
    expected = [i for length in batch.lengths for i in range(length)]
    assert batch.positions.tolist() == expected
    found = owners(batch, examples)
    assert found == sorted(found)


@given(learnable_steps)
def test_every_sequence_ends_where_the_loss_looks_last(examples):
    batch = pack(examples)
    last_rows = torch.tensor(batch.lengths).cumsum(0) - 1
    assert set(last_rows.tolist()) <= set(batch.places.tolist())


def test_a_batch_is_what_the_rules_say_by_hand():
    batch = pack(
        [
            Example([10, 11, 12, 13, 14], [False, False, True, True, False]),
            Example([20, 21], [True, False]),
            Example([30, 31, 32], [True, True, True]),
        ]
    )
    assert batch.tokens.tolist() == [10, 11, 12, 30, 31]
    assert batch.lengths == [3, 2]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.places.tolist() == [1, 2, 3, 4]
    assert batch.targets.tolist() == [12, 13, 31, 32]


def test_every_tensor_of_a_batch_is_int64():
    batch = pack(all_learned(2, 1))
    tensors = (batch.tokens, batch.positions, batch.places, batch.targets)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


@pytest.mark.parametrize("learned", [[], [[]], [[True]], [[True, False], [False, False]]])
def test_examples_with_nothing_to_learn_are_refused(learned):
    with pytest.raises(DataError, match=f"none of {len(learned)} examples"):
        pack(numbered(learned))
    with pytest.raises(DataError, match=f"none of {len(learned)} examples"):
        micro_batches(numbered(learned), 8)


@given(learnable_steps, st.integers(1, 40))
def test_micro_batches_learn_what_the_step_learns_once(examples, capacity):
    batches = micro_batches(examples, capacity)
    learned = [pair for batch in batches for pair in learned_in(batch)]
    assert sorted(learned) == transitions(examples)


@given(learnable_steps, st.integers(1, 40))
def test_a_micro_batch_exceeds_the_capacity_with_one_example_at_most(examples, capacity):
    for batch in micro_batches(examples, capacity):
        assert len(batch.tokens) <= capacity or len(batch.lengths) == 1


@given(learnable_steps, st.integers(1, 40))
def test_a_micro_batch_keeps_the_order_of_its_examples(examples, capacity):
    for batch in micro_batches(examples, capacity):
        found = owners(batch, examples)
        assert found == sorted(found)


@given(learnable_steps, st.integers(1, 40))
def test_the_same_examples_give_the_same_micro_batches(examples, capacity):
    first, second = (micro_batches(list(examples), capacity) for _ in range(2))
    assert [x.tokens.tolist() for x in first] == [x.tokens.tolist() for x in second]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(20, 60))
def test_micro_batches_are_few(lengths, capacity):
    """First-fit decreasing takes at most 11/9 of the fewest batches, plus 6/9."""
    batches = micro_batches(all_learned(*lengths), capacity)
    assert len(batches) * 9 <= 11 * fewest_batches(lengths, capacity) + 6


def fewest_batches(lengths: list[int], capacity: int) -> int:
    """Return the fewest batches there can be: for each set of examples, how full the last is."""
    best = {0: (0, capacity)}
    for chosen in range(1, 1 << len(lengths)):
        options = list[tuple[int, int]]()
        for i, length in enumerate(lengths):
            if chosen >> i & 1:
                batches, size = best[chosen & ~(1 << i)]
                fits = size + length <= capacity
                options.append((batches, size + length) if fits else (batches + 1, length))
        best[chosen] = min(options)
    return best[(1 << len(lengths)) - 1][0]


def test_a_small_remainder_is_shared_out_evenly():
    sizes = [len(batch.tokens) for batch in micro_batches(all_learned(*[10] * 11), 100)]
    assert sorted(sizes) == [50, 60]


@pytest.mark.parametrize("lengths", [(6, 5, 5, 4, 4, 3, 3), (3, 3, 4, 4, 5, 5, 6)])
def test_a_tight_fit_is_found_and_not_given_up_for_evenness(lengths):
    """Always filling the emptiest would end at 14 and 16, filling in the given order at three."""
    sizes = [len(batch.tokens) for batch in micro_batches(all_learned(*lengths), 15)]
    assert sizes == [15, 15]


def test_an_example_beyond_the_capacity_is_a_batch_of_its_own():
    batches = micro_batches(all_learned(2, 9, 3), 5)
    assert sorted(batch.lengths for batch in batches) == [[2, 3], [9]]


def test_the_rest_is_shared_out_evenly_beside_an_example_beyond_the_capacity():
    sizes = [len(batch.tokens) for batch in micro_batches(all_learned(*[10] * 11, 150), 100)]
    assert sorted(sizes) == [50, 60, 150]


def test_equal_lengths_are_taken_in_their_order():
    examples = all_learned(4, 4, 4, 4)
    batches = micro_batches(examples, 8)
    assert [owners(batch, examples) for batch in batches] == [[0, 2], [1, 3]]
