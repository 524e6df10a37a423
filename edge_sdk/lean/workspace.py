"""Buffers that are allocated once and used again in every layer, micro-batch and step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace:
    """Named scratch memory that only grows, so that steps allocate nothing."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a contiguous tensor of undefined content; the next take of a name reuses it.

        Args:
            name: Of the buffer; what is alive at once needs different names.
            shape: Of the tensor.
            dtype: Of the tensor.
        """
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self._buffers.pop(name, None)
            buffer = self._buffers[name] = torch.empty(size, dtype=torch.uint8)
        return buffer[:size].view(dtype).view(*shape)

    @property
    def held_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.numel() for buffer in self._buffers.values())
