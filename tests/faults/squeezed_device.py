"""``python -m tests.faults.squeezed_device WHEN ARGUMENTS``: edge-sdk, and memory runs out.

What runs out is real: at the given moment memory is written block by block until the system
refuses one.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import torch

import edge_sdk.training.local_trainer
import edge_sdk.training.trainable_base
from edge_sdk.cli import main
from edge_sdk.lean.llama import Llama
from edge_sdk.lean.trainee import LeanTrainee

_BLOCK_NUMBERS = 4 << 20  # of 4 bytes
_MOST_BLOCKS = 200  # 3.1 GiB: beyond this nothing limits this process


def squeeze() -> None:
    """Write memory until an allocation fails; the caller meets the error of that allocation."""
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY
    hoard = list[torch.Tensor]()
    while len(hoard) < _MOST_BLOCKS:
        hoard.append(torch.ones(_BLOCK_NUMBERS))
    raise AssertionError("this process is not held to its budget")


def squeeze_in_step_3() -> None:
    """In the third step of the process's first attempt, when its activations are there."""
    train_round = edge_sdk.training.local_trainer.train_round
    gradients, head = LeanTrainee.gradients, Llama._head
    attempts = steps = 0

    def attempted(*arguments: Any, **how: Any) -> Any:
        nonlocal attempts, steps
        attempts, steps = attempts + 1, 0  # warming up has taken a step before
        return train_round(*arguments, **how)

    def counted(*arguments: Any) -> float:
        nonlocal steps
        steps += 1
        return gradients(*arguments)

    def squeezed(*arguments: Any) -> float:
        if (attempts, steps) == (1, 3):
            squeeze()
        return head(*arguments)

    edge_sdk.training.local_trainer.train_round = attempted
    LeanTrainee.gradients = counted
    Llama._head = squeezed


def squeeze_every_load() -> None:
    """Whenever the base has been read."""
    open_lean_base = edge_sdk.training.trainable_base.open_lean_base

    def squeezed(*arguments: Any, **how: Any) -> Any:
        base = open_lean_base(*arguments, **how)
        squeeze()
        return base

    edge_sdk.training.trainable_base.open_lean_base = squeezed


_WHEN: dict[str, Callable[[], None]] = {
    "step-3": squeeze_in_step_3,
    "every-load": squeeze_every_load,
}

if __name__ == "__main__":
    _WHEN[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
