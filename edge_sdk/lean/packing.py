"""Examples to batches without padding: token sequences end to end, loss positions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_sdk.errors import DataError
from edge_sdk.text.example import Example


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Sequences laid end to end; none may attend to another.

    Attributes:
        tokens: ``(t,)`` int64 token ids.
        lengths: Tokens of each sequence; they sum to ``t``.
        positions: ``(t,)`` int64, from 0 in each sequence.
        places: ``(n,)`` int64, ascending: the rows of ``tokens`` whose next token is learned.
        targets: ``(n,)`` int64: that next token, which ``tokens`` need not hold.
    """

    tokens: Tensor
    lengths: list[int]
    positions: Tensor
    places: Tensor
    targets: Tensor


def pack(examples: Sequence[Example]) -> PackedBatch:
    """Lay examples end to end, each up to the token before its last learned one.

    What follows in an example predicts nothing that is learned, so it is not computed; an example
    with no learned token after its first is left out.

    Args:
        examples: Of a causal LM; the batch keeps their order.

    Raises:
        DataError: No example has anything to learn.
    """
    kept = _learnable(examples)
    lengths = [_length(example) for example in kept]
    starts = np.cumsum([0, *lengths[:-1]])
    places = [_places(example) for example in kept]
    return PackedBatch(
        _joined([example.tokens[:length] for example, length in zip(kept, lengths, strict=True)]),
        lengths,
        _joined([np.arange(length) for length in lengths]),
        _joined([start + place for start, place in zip(starts, places, strict=True)]),
        _joined([example.tokens[at + 1] for example, at in zip(kept, places, strict=True)]),
    )


def micro_batches(examples: Sequence[Example], capacity: int) -> list[PackedBatch]:
    """Split the examples of one optimizer step into few packed batches of similar size.

    The same examples always give the same batches, and in a batch they keep their order.

    Args:
        examples: Of a causal LM.
        capacity: Tokens a batch holds at most, except that a longer example is a batch of its own.

    Raises:
        DataError: No example has anything to learn.
    """
    kept = _learnable(examples)
    lengths = [_length(example) for example in kept]
    groups = _first_fit(lengths, capacity)
    evened = _evened(lengths, len(groups))
    if all(_fits(group, lengths, capacity) for group in evened):
        groups = evened
    return [pack([kept[i] for i in sorted(group)]) for group in groups]


def _learnable(examples: Sequence[Example]) -> list[Example]:
    kept = [example for example in examples if _length(example)]
    if not kept:
        raise DataError(
            f"none of {len(examples)} examples has a token to learn from: the first token of a "
            "text is predicted from nothing, so a learned token must follow it"
        )
    return kept


def _places(example: Example) -> NDArray[np.int64]:
    """Return which tokens of an example a learned one follows."""
    return np.flatnonzero(example.is_learned[1:])


def _length(example: Example) -> int:
    """Return how many tokens come before the last learned one, 0 if none is learned."""
    return int(_places(example).max(initial=-1)) + 1


def _joined(parts: Sequence[NDArray[np.integer]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64, copy=False))


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def _first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing: each into the first group with room, which takes few groups."""
    groups, sizes = list[list[int]](), list[int]()
    for i in _longest_first(lengths):
        fitting = (g for g, size in enumerate(sizes) if size + lengths[i] <= capacity)
        g = next(fitting, len(groups))
        if g == len(groups):
            groups.append([])
            sizes.append(0)
        groups[g].append(i)
        sizes[g] += lengths[i]
    return groups


def _evened(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Each into the group that holds least, which makes ``count`` groups alike."""
    groups, sizes = [list[int]() for _ in range(count)], [0] * count
    for i in _longest_first(lengths):
        g = sizes.index(min(sizes))
        groups[g].append(i)
        sizes[g] += lengths[i]
    return groups


def _fits(group: Sequence[int], lengths: Sequence[int], capacity: int) -> bool:
    return len(group) == 1 or sum(lengths[i] for i in group) <= capacity
