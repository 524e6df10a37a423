"""The optimizers of the local steps, in place, without what a general library brings along.

``torch.optim`` computes the same, but its first step imports a compiler: 76 MB that a
device would hold for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from edge_sdk.lean.row_operations import adamw_step


class Optimizer(Protocol):
    """Changes parameters by their gradients."""

    def step(self) -> None:
        """Take one step."""

    def state(self) -> dict[str, Tensor]:
        """Return what it remembers from step to step, by name; no copies."""

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Remember what another one remembered after so many steps; its names and shapes."""


class SGD:
    """Stochastic gradient descent; weight decay is added to the gradient.

    Args:
        parameters: What is trained.
        lr: Step size.
        weight_decay: L2 penalty.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        self._parameters = parameters
        self._lr = lr
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for parameter in self._parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            if self._weight_decay:
                gradient = gradient.add(parameter, alpha=self._weight_decay)
            parameter.add_(gradient, alpha=-self._lr)

    def state(self) -> dict[str, Tensor]:
        """Return nothing: no step depends on those before."""
        return {}

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Do nothing: no step depends on those before."""


class AdamW:
    """Adam with decoupled weight decay; ``torch.optim.AdamW`` gives the same up to rounding.

    Args:
        parameters: What is trained.
        lr: Step size.
        weight_decay: Share of the step size by which values shrink.

    Source:
        Loshchilov and Hutter, arXiv:1711.05101, algorithm 2.
    """

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        self._parameters = parameters
        self._lr = lr
        self._weight_decay = weight_decay
        self._moments = [_zeros(x) for x in parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        self._steps += 1
        first, second = self.BETAS
        size = self._lr / (1 - first**self._steps)
        root = math.sqrt(1 - second**self._steps)
        for parameter, (mean, square) in zip(self._parameters, self._moments, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            decay = 1 - self._lr * self._weight_decay
            numbers = (decay, 1 - first, second, size, root, self.EPSILON)
            if adamw_step(parameter, gradient, mean, square, numbers):
                continue
            parameter.mul_(decay)
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            parameter.addcdiv_(mean, square.sqrt().div_(root).add_(self.EPSILON), value=-size)

    def state(self) -> dict[str, Tensor]:
        """Return the moving means of the gradients and of their squares; no copies."""
        found = dict[str, Tensor]()
        for number, (mean, square) in enumerate(self._moments):
            found[f"mean.{number}"], found[f"square.{number}"] = mean, square
        return found

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Remember what another one remembered after so many steps; its names and shapes."""
        self._steps = steps
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def _zeros(parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    values = parameter.detach()
    return torch.zeros_like(values), torch.zeros_like(values)
