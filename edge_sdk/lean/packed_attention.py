"""Causal attention within packed examples, by the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_sdk.lean import native
from edge_sdk.lean.native import PANEL, WIDEST, Kernel

_QUERIES = 6  # that attention computes together


@dataclass(frozen=True, slots=True)
class PackedHeads:
    """How the rows of packed examples divide into examples, and their columns into heads.

    Attributes:
        starts: ``(examples + 1,)`` int64: first row of each, and the end of the last.
        longest: Rows of the longest example.
        heads: Query heads.
        key_heads: Key heads.
        head_size: Of one head.
    """

    starts: Tensor
    longest: int
    heads: int
    key_heads: int
    head_size: int

    @property
    def padded(self) -> int:
        """Rows of the longest example, up to a whole panel."""
        return -(-self.longest // PANEL) * PANEL

    @property
    def scratch_bytes(self) -> int:
        """Bytes of what one thread needs: keys and values laid across, and six queries' scores."""
        return 4 * self.padded * 2 * (self.head_size + _QUERIES)


def attends(packed: PackedHeads, dtype: torch.dtype) -> bool:
    """Tell whether :func:`attend` can run here, and has work for all threads."""
    found = native.library()
    tasks = (len(packed.starts) - 1) * packed.key_heads
    return (
        found is not None
        and found.width == WIDEST
        and dtype == torch.float32
        and packed.head_size % PANEL == 0
        and tasks >= torch.get_num_threads()
    )


def attend(
    q: Tensor, k: Tensor, v: Tensor, packed: PackedHeads, out: Tensor, scratch: Tensor
) -> None:
    """Write causal attention of each example by itself; all ``(rows, columns)`` fp32.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        packed: For which :func:`attends` holds.
        out: Written.
        scratch: ``packed.scratch_bytes`` for each thread.
    """
    _attend(Kernel.ATTEND, (q, k, v, out, packed.starts, scratch), packed)


def attend_back(
    inputs: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    packed: PackedHeads,
    gradients: tuple[Tensor, Tensor, Tensor],
    scratch: Tensor,
) -> None:
    """Write the gradients of queries, keys and values; the way :func:`attend` went is gone again.

    Args:
        inputs: Queries, keys and values.
        gradient: Of the output.
        packed: As before.
        gradients: Written.
        scratch: As before.
    """
    tensors = (*inputs, gradient, packed.starts, scratch, *gradients)
    _attend(Kernel.ATTEND_BACK, tensors, packed)


def _attend(kernel: Kernel, tensors: Sequence[Tensor], packed: PackedHeads) -> None:
    kernels = native.library()
    assert kernels is not None  # noqa: S101 - attends() said so
    tasks = (len(packed.starts) - 1) * packed.key_heads
    sizes = (packed.heads, packed.key_heads, packed.head_size, packed.scratch_bytes, packed.padded)
    scale = packed.head_size**-0.5
    kernels.run(kernel, tasks, tensors, sizes, (scale,), len(tensors[0]) * packed.padded)
