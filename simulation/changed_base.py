"""Frozen weights with what a method has folded into them, for as long as they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from server.methods.method import BaseChange


@contextmanager
def changed(model: nn.Module, change: BaseChange) -> Iterator[None]:
    """Add a change to the weights of linear layers, and put the very same weights back after."""
    weights = {name: model.get_submodule(name).get_parameter("weight") for name in change}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.add_(torch.from_numpy(change[name]))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
