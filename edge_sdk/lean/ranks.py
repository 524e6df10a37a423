"""The trained ranks of a sketch, held in groups of layers that share one input."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_sdk.general.lora import NamedArrays, check_slices
from edge_sdk.lean.workspace import Workspace
from edge_sdk.sketch import Factors
from edge_sdk.wire.task import AdapterSpec


@dataclass
class RankGroup:
    """The ranks of layers with the same input.

    Attributes:
        names: Full layer names.
        A: ``(len(names) * k, d_in)``: the rows of one layer after those of another.
        A_of: For each layer its rows of ``A``, as what the optimizer changes.
        B_of: For each layer ``B^T (k, d_out)``: so its gradient is a product with long rows.
        k: Sketch size.
        scale: Of ``B A``.
        is_trained: For each layer, whether its ranks learn.
        narrow_A: ``A`` in the format of the activations.
        narrow_B: For each layer the same of B.
    """

    names: list[str]
    A: Tensor
    A_of: list[nn.Parameter]
    B_of: list[nn.Parameter]
    k: int
    scale: float
    is_trained: list[bool]
    narrow_A: Tensor = field(init=False)
    narrow_B: list[Tensor] = field(init=False)

    def narrow(self, dtype: torch.dtype) -> None:
        """Bring the values into the format of the activations; before every pass."""
        self.narrow_A = self.A.to(dtype)
        self.narrow_B = [B.detach().T.to(dtype).contiguous() for B in self.B_of]

    def reduce(self, x: Tensor, workspace: Workspace) -> Tensor:
        """Return ``scale * x A^T``, ``(rows, len(names) * k)``."""
        ranks = workspace.take("ranks", (len(x), len(self.A)), x.dtype)
        torch.mm(x, self.narrow_A.T, out=ranks)
        return ranks.mul_(self.scale)

    def add(self, number: int, ranks: Tensor, y: Tensor) -> None:
        """Add one layer's ``ranks B^T`` to ``y``."""
        y.addmm_(self._columns(number, ranks), self.narrow_B[number].T)

    def back(self, gradients: Sequence[Tensor], dx: Tensor | None, workspace: Workspace) -> Tensor:
        """Return the gradient of the ranks, and add that of the input to ``dx`` if there is one.

        Args:
            gradients: For each layer ``(rows, d_out)``.
            dx: ``(rows, d_in)``.
            workspace: Holds the result until the next group goes back.
        """
        rows, width = len(gradients[0]), len(self.A)
        backward = workspace.take("rank gradients", (rows, width), gradients[0].dtype)
        for i, g in enumerate(gradients):
            torch.mm(g, self.narrow_B[i], out=self._columns(i, backward))
        backward.mul_(self.scale)
        if dx is not None:
            dx.addmm_(backward, self.narrow_A)
        return backward

    def learn(
        self, gradients: Sequence[Tensor], backward: Tensor, x: Tensor, workspace: Workspace
    ) -> None:
        """Add the gradients of A and B of the layers that learn.

        Args:
            gradients: For each layer ``(rows, d_out)``.
            backward: Gradient of the ranks.
            x: ``(rows, d_in)``, the shared input.
            workspace: For the ranks.
        """
        if not any(self.is_trained):
            return
        ranks = self.reduce(x, workspace)
        for i, g in enumerate(gradients):
            if self.is_trained[i]:
                _accumulate(self.B_of[i], self._columns(i, ranks).T, g)
                _accumulate(self.A_of[i], self._columns(i, backward).T, x)

    def _columns(self, number: int, ranks: Tensor) -> Tensor:
        return ranks[:, number * self.k : (number + 1) * self.k]


def _accumulate(parameter: nn.Parameter, left: Tensor, right: Tensor) -> None:
    """Add a product to a gradient, in the format of the parameter."""
    gradient = parameter.grad
    assert gradient is not None  # noqa: S101 - made with the parameter
    if gradient.dtype == left.dtype:
        gradient.addmm_(left, right)
    else:
        gradient.add_(left @ right)


class Ranks:
    """All groups of one device in one round.

    Args:
        adapter: Names and sizes.
        slices: Every tensor of ``adapter_shapes(adapter, k)`` for one k; copied.
        scale: Of ``B A`` in the forward.
        trained_targets: Endings of the layer names to train; None trains all.
        groups: Names of layers that share an input, for every input of every block.
    """

    def __init__(
        self,
        adapter: AdapterSpec,
        slices: NamedArrays,
        scale: float,
        trained_targets: Collection[str] | None,
        groups: Sequence[Sequence[str]],
    ) -> None:
        k = check_slices(adapter, slices)
        adapted = {layer.name: layer for layer in adapter.layers}
        self.groups = dict[str, RankGroup]()
        for names in groups:
            chosen = [name for name in names if name in adapted]
            if not chosen:
                continue
            trained = [
                trained_targets is None or adapted[x].ending in trained_targets for x in chosen
            ]
            A = torch.cat([torch.from_numpy(slices[f"{name}.lora_A"]) for name in chosen])
            B = [torch.from_numpy(slices[f"{name}.lora_B"].T.copy()) for name in chosen]
            self.groups[names[0]] = RankGroup(
                names=chosen,
                A=A,
                A_of=[_parameter(x, t) for x, t in zip(torch.split(A, k), trained, strict=True)],
                B_of=[_parameter(x, t) for x, t in zip(B, trained, strict=True)],
                k=k,
                scale=scale,
                is_trained=trained,
            )

    def parameters(self, factors: Factors = "AB") -> list[nn.Parameter]:
        """Return what is trained when these factors are."""
        every = [
            x
            for group in self.groups.values()
            for factor, parameters in (("A", group.A_of), ("B", group.B_of))
            if factor in factors
            for x in parameters
        ]
        return [x for x in every if x.requires_grad]

    def zero_gradients(self) -> None:
        """Set every gradient to zero."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies of all values, trained or not, under the names the wire uses."""
        found = dict[str, NDArray[Any]]()
        for group in self.groups.values():
            for name, A, B in zip(group.names, group.A_of, group.B_of, strict=True):
                found[f"{name}.lora_A"] = np.array(A.detach().numpy())
                found[f"{name}.lora_B"] = B.detach().numpy().T.copy()
        return found

    @torch.no_grad()
    def pull(self, towards: NamedArrays, share: float) -> None:
        """Move every trained value a share of the way to another; names are those of the wire."""
        for group in self.groups.values():
            layers = zip(group.names, group.A_of, group.B_of, group.is_trained, strict=True)
            for name, A, B, is_trained in layers:
                if is_trained:
                    A.lerp_(torch.from_numpy(towards[f"{name}.lora_A"]), share)
                    B.lerp_(torch.from_numpy(towards[f"{name}.lora_B"]).T, share)

    def narrow(self, dtype: torch.dtype) -> None:
        """Bring all values into the format of the activations; before every pass."""
        for group in self.groups.values():
            group.narrow(dtype)

    def is_trained(self, names: Mapping[str, Any] | Collection[str]) -> bool:
        """Tell whether any of these layers learns."""
        return any(
            t
            for group in self.groups.values()
            for name, t in zip(group.names, group.is_trained, strict=True)
            if name in names
        )


def _parameter(value: Tensor, is_trained: bool) -> nn.Parameter:
    parameter = nn.Parameter(value, requires_grad=is_trained)
    if is_trained:
        parameter.grad = torch.zeros_like(value)
    return parameter
