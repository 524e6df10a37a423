"""Causal attention over packed examples: each example by itself, nothing quadratic kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], head_size: int, out: Tensor
) -> list[Tensor]:
    """Write the attention's output and return what going back needs besides it.

    Args:
        q: ``(rows, heads * head_size)``.
        k: ``(rows, key_heads * head_size)``.
        v: As ``k``.
        lengths: Rows of each example, one after the other.
        head_size: Of one head.
        out: As ``q``, written.

    Returns:
        For each example the log-sum-exp of its scores.
    """
    key_heads = k.shape[1] // head_size
    statistics = []
    for rows in _examples(lengths):
        heads = [_by_key_head(x[rows], key_heads, head_size) for x in (q, k, v)]
        query, key, value = heads[0], *(x.expand_as(heads[0]) for x in heads[1:])
        result, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True
        )
        _by_key_head(out[rows], key_heads, head_size).copy_(result)
        statistics.append(log_sum)
    return statistics


def attend_back(
    gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    statistics: Sequence[Tensor],
    lengths: Sequence[int],
    head_size: int,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write the gradients of queries, keys and values.

    Args:
        gradient: Of the output, ``(rows, heads * head_size)``.
        inputs: ``q, k, v`` as they went in.
        out: The output.
        statistics: As :func:`attend` returned them.
        lengths: Rows of each example.
        head_size: Of one head.
        gradients: Shapes of ``inputs``, written.
    """
    key_heads = inputs[1].shape[1] // head_size
    for rows, log_sum in zip(_examples(lengths), statistics, strict=True):
        heads = [_by_key_head(x[rows], key_heads, head_size) for x in inputs]
        query, key, value = heads[0], *(x.expand_as(heads[0]) for x in heads[1:])
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _by_key_head(gradient[rows], key_heads, head_size),
            query,
            key,
            value,
            _by_key_head(out[rows], key_heads, head_size),
            log_sum,
            0.0,
            True,
        )
        for target, value_found in zip(gradients, found, strict=True):
            place = _by_key_head(target[rows], key_heads, head_size)
            if place.shape == value_found.shape:
                place.copy_(value_found)
            else:  # a key serves several queries
                torch.sum(value_found, dim=1, keepdim=True, out=place)


def _examples(lengths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def _by_key_head(x: Tensor, key_heads: int, head_size: int) -> Tensor:
    """View ``(rows, heads * head_size)`` as ``(key_heads, heads per key, rows, head_size)``."""
    return x.view(len(x), key_heads, -1, head_size).permute(1, 2, 0, 3)
