"""Keep only the input of each transformer block, and compute the block again when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed_blocks(model: nn.Module, count: int) -> Iterator[None]:
    """Checkpoint the first repeated blocks of a model while the context lasts.

    The model stays in evaluation mode, in which the libraries' own switch does nothing, and so
    computes without any randomness that would have to be replayed.
    """
    blocks = [
        block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module
    ][:count]
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = _recomputed(block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward  # the class's own method again
            else:
                block.forward = forward


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
