"""Causal attention over packed examples: each example by itself, nothing quadratic kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edge_sdk.lean.packed_attention import PackedHeads, attend, attend_back, attends
from edge_sdk.lean.workspace import Workspace


class PackedAttention:
    """Attention over the examples of one batch.

    Args:
        lengths: Rows of each example, one after the other.
        heads: Query heads.
        key_heads: Key heads.
        head_size: Of one head.
        workspace: Lends scratch memory.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        heads: int,
        key_heads: int,
        head_size: int,
        workspace: Workspace,
    ) -> None:
        self._lengths = lengths
        self._workspace = workspace
        starts = torch.tensor([0, *lengths]).cumsum(0)
        self._packed = PackedHeads(starts, max(lengths), heads, key_heads, head_size)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> list[Tensor]:
        """Write the attention's output; return what going back needs besides it.

        Args:
            q: ``(rows, heads * head_size)``.
            k: ``(rows, key_heads * head_size)``.
            v: As ``k``.
            out: As ``q``, written.
        """
        if attends(self._packed, q.dtype):
            attend(q, k, v, self._packed, out, self._scratch())
            return []
        statistics = []
        for rows in _examples(self._lengths):
            query, key, value = self._heads(q[rows], k[rows], v[rows])
            result, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, 0.0, True
            )
            self._by_key_head(out[rows]).copy_(result)
            statistics.append(log_sum)
        return statistics

    def backward(
        self,
        gradient: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        out: Tensor,
        statistics: Sequence[Tensor],
        gradients: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Write the gradients of queries, keys and values.

        Args:
            gradient: Of the output, ``(rows, heads * head_size)``.
            inputs: Queries, keys and values as they went in.
            out: The output.
            statistics: As :meth:`forward` returned them.
            gradients: Shapes of ``inputs``, written.
        """
        if attends(self._packed, gradient.dtype):
            attend_back(inputs, gradient, self._packed, gradients, self._scratch())
            return
        for rows, log_sum in zip(_examples(self._lengths), statistics, strict=True):
            query, key, value = self._heads(*(x[rows] for x in inputs))
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                self._by_key_head(gradient[rows]),
                query,
                key,
                value,
                self._by_key_head(out[rows]),
                log_sum,
                0.0,
                True,
            )
            for target, value_found in zip(gradients, found, strict=True):
                place = self._by_key_head(target[rows])
                if place.shape == value_found.shape:
                    place.copy_(value_found)
                else:  # a key serves several queries
                    torch.sum(value_found, dim=1, keepdim=True, out=place)

    def _scratch(self) -> Tensor:
        size = torch.get_num_threads() * self._packed.scratch_bytes
        return self._workspace.take("attention", (size,), torch.uint8)

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query = self._by_key_head(q)
        shape = query.shape
        return query, self._by_key_head(k).expand(shape), self._by_key_head(v).expand(shape)

    def _by_key_head(self, x: Tensor) -> Tensor:
        """View ``(rows, columns)`` as ``(key_heads, heads per key, rows, head_size)``."""
        packed = self._packed
        return x.view(len(x), packed.key_heads, -1, packed.head_size).permute(1, 2, 0, 3)


def _examples(lengths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length
