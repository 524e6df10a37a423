"""Put the k sketched ranks of an adapter onto a frozen model, and take them off again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.errors import AdapterError
from edge_sdk.sketch import Factors
from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.task import AdapterSpec

NamedArrays = Mapping[str, NDArray[np.floating]]


class SketchedLinear(nn.Module):
    """``y = base(x) + scale * x A^T B^T``: k trained ranks on a frozen base.

    The trained ranks are kept in the format they were given, fp32 on a device, so that small
    steps are not rounded away. They are narrowed to the format of ``x`` for the product: the
    result is added to a base output of that format anyway, and widening ``x`` instead would
    keep one more fp32 copy of the activations per layer until the backward pass.

    Args:
        base: Frozen layer, quantized or not, ``d_in -> d_out``.
        B: ``(d_out, k)``, the sketched columns of the global B.
        A: ``(k, d_in)``, the sketched rows of the global A.
        scale: ``lora_scaling`` at the global rank, times ``r / k``.
    """

    def __init__(self, base: nn.Module, B: Tensor, A: Tensor, scale: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_B = nn.Parameter(B)
        self.lora_A = nn.Parameter(A)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., d_in)`` to ``(..., d_out)``."""
        ranks = functional.linear(x, self.lora_A.to(x.dtype))
        y: Tensor = self.base(x)
        return y + functional.linear(self.scale * ranks, self.lora_B.to(x.dtype))


class SketchedAdapter:
    """The trained parameters of one device while they sit on a model; made by :func:`attach`."""

    def __init__(self) -> None:
        self._parameters: dict[str, nn.Parameter] = {}
        self._undo: list[Callable[[], None]] = []

    def put_layer(
        self, model: nn.Module, name: str, A: Tensor, B: Tensor, scale: float, is_trained: bool
    ) -> None:
        """Wrap one linear layer; ``A (k, d_in)``, ``B (d_out, k)``."""
        owner, child = _owner(model, name)
        sketched = SketchedLinear(owner.get_submodule(child), B, A, scale)
        sketched.lora_A.requires_grad_(is_trained)
        sketched.lora_B.requires_grad_(is_trained)
        self._undo.append(_replace(owner, child, sketched))
        self._parameters[f"{name}.lora_A"] = sketched.lora_A
        self._parameters[f"{name}.lora_B"] = sketched.lora_B

    def put_dense(self, model: nn.Module, name: str, value: Tensor) -> None:
        """Train a dense parameter in its own format, also on a base that computes in another."""
        owner, child = _owner(model, name)
        owner = owner.base if isinstance(owner, SketchedLinear) else owner
        native = owner.get_parameter(child).dtype
        self._parameters[name] = nn.Parameter(value)
        self._undo.append(_replace(owner, child, self._parameters[name]))
        if native != value.dtype:
            enter = owner.register_forward_pre_hook(lambda _, args: _cast(args, value.dtype))
            leave = owner.register_forward_hook(lambda _, args, y: _cast((y,), native)[0])
            self._undo += [enter.remove, leave.remove]

    def parameters(self, factors: Factors = "AB") -> list[nn.Parameter]:
        """Return what is trained: factors of every trained layer, then the dense parameters."""
        others = tuple(f".lora_{factor}" for factor in "AB" if factor not in factors)
        return [
            parameter
            for name, parameter in self._parameters.items()
            if parameter.requires_grad and not name.endswith(others)
        ]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies of all values, trained or not, under the names the wire uses."""
        return {
            name: parameter.detach().cpu().numpy().copy()
            for name, parameter in self._parameters.items()
        }

    def pull(self, towards: NamedArrays, share: float) -> None:
        """Move every trained value a share of the way to another, by name."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if parameter.requires_grad:
                    end = torch.tensor(towards[name], dtype=parameter.dtype)
                    parameter.lerp_(end.to(parameter.device), share)

    def detach(self) -> None:
        """Give the model its own modules and dense parameters back; twice is once."""
        while self._undo:
            self._undo.pop()()


def attach(
    model: nn.Module,
    adapter: AdapterSpec,
    slices: NamedArrays,
    scale: float,
    trained_targets: Collection[str] | None = None,
) -> SketchedAdapter:
    """Put sketched ranks and dense parameters on a model, in place.

    Args:
        model: Has every layer of the adapter, see ``base_model.verify_layers``.
        adapter: Names and sizes.
        slices: Every tensor of ``adapter_shapes(adapter, k)`` for one k; copied.
        scale: Of ``B A`` in the forward, see :func:`edge_sdk.sketch.sketched_scaling`.
        trained_targets: Endings of the layer names to train; the ranks of the others take part
            in the forward pass and stay as they are. None trains all.

    Raises:
        AdapterError: The arrays are not those of the adapter; the model is as before.
    """
    check_slices(adapter, slices)
    place = next(model.parameters()).device
    given = {name: torch.tensor(array, device=place) for name, array in slices.items()}
    attached = SketchedAdapter()
    try:
        for layer in adapter.layers:
            A, B = given[f"{layer.name}.lora_A"], given[f"{layer.name}.lora_B"]
            is_trained = trained_targets is None or layer.ending in trained_targets
            attached.put_layer(model, layer.name, A, B, scale, is_trained)
        for dense in adapter.dense:
            attached.put_dense(model, dense.name, given[dense.name])
    except AttributeError as error:
        attached.detach()
        raise AdapterError(f"the adapter does not fit this model: {error}") from error
    return attached


def check_slices(adapter: AdapterSpec, slices: NamedArrays, k: int | None = None) -> int:
    """Check that arrays are the adapter at one sketch size, and return that size.

    Args:
        adapter: Names and sizes.
        slices: Arrays by wire name.
        k: The sketch size they must have; None takes any.

    Raises:
        AdapterError: A name is missing or too many, or a shape is another one.
    """
    first = slices.get(f"{adapter.layers[0].name}.lora_A")
    k = k if k is not None else (first.shape[0] if first is not None else 0)
    expected = adapter_shapes(adapter, k)
    odd = sorted(expected.keys() ^ slices.keys())
    if odd:
        raise AdapterError(
            f"the arrays are not those of the adapter: {odd[0]!r} is "
            f"{'missing' if odd[0] in expected else 'not part of it'}"
        )
    for name, shape in expected.items():
        if slices[name].shape != shape:
            raise AdapterError(f"{name} has shape {slices[name].shape}; with k={k} it is {shape}")
    return k


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module a dotted name ends in, and the last part of the name."""
    path, _, child = name.rpartition(".")
    return model.get_submodule(path), child


def _replace(owner: nn.Module, child: str, value: nn.Module | nn.Parameter) -> Callable[[], None]:
    """Set a child module or parameter and return what restores the previous one."""
    previous = getattr(owner, child)
    setattr(owner, child, value)
    return lambda: setattr(owner, child, previous)


def _cast(tensors: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in tensors)
