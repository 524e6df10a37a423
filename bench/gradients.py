"""Gradients of an adapter by name, from the hand-written passes and from PEFT, and how they differ.

All are of the mean loss over what is learned, in fp64, under the names the wire uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edge_sdk.lean.base import LeanBase
from edge_sdk.lean.llama import Frozen, Llama, input_groups
from edge_sdk.lean.packing import pack
from edge_sdk.lean.ranks import Ranks
from edge_sdk.text.example import Example
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec

Gradients = Mapping[str, Tensor]


def lean_gradients(
    base: LeanBase,
    adapter: AdapterSpec,
    slices: Arrays,
    scale: float,
    examples: Sequence[Example],
    *,
    is_reference: bool = False,
) -> Gradients:
    """Return the gradients of the hand-written passes.

    Args:
        base: Frozen model; integer products find their exempt layers first, as in a round.
        adapter: Names and sizes.
        slices: Values of the ranks.
        scale: Of ``B A``.
        examples: One batch.
        is_reference: Compute in fp64 throughout, whatever the base computes in.
    """
    longest = max(len(example.tokens) for example in examples)
    if is_reference:
        passes = _reference(base, longest)
    else:
        base.trainee(adapter, slices, scale, None, examples, None, 0)  # it finds exempt layers
        passes = base.passes(longest)
    ranks = Ranks(adapter, slices, scale, None, input_groups(base.architecture.shape.num_layers))
    batch = pack(examples)
    passes.add_gradients(batch, ranks, 1 / len(batch.targets))
    return dict(_of_ranks(ranks))


def peft_gradients(model: Any) -> Gradients:
    """Return the gradients a PEFT model holds."""
    prefix, suffix = "base_model.model.", ".default.weight"
    return {
        name.removeprefix(prefix).removesuffix(suffix): parameter.grad.double()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def worst_difference(found: Gradients, expected: Gradients) -> float:
    """Return the largest relative difference, in the norm, of any one tensor."""
    _refuse_other_names(found, expected)
    return max(float((found[x] - y).norm() / y.norm()) for x, y in expected.items())


def difference(found: Gradients, expected: Gradients) -> float:
    """Return the relative difference, in the norm, of all tensors together."""
    left, right = _joined(found, expected), _joined(expected, expected)
    return float((left - right).norm() / right.norm())


def cosine(found: Gradients, expected: Gradients) -> float:
    """Return the cosine of all tensors together."""
    left, right = _joined(found, expected), _joined(expected, expected)
    return float(torch.cosine_similarity(left, right, dim=0))


def _reference(base: LeanBase, longest: int) -> Llama:
    return Llama(
        base.architecture,
        Frozen(matrices=base.prepared.matrices, vectors=base.prepared.vectors),
        dtype=torch.float64,
        kept=torch.float64,
        products="wide",
        length=longest,
    )


def _of_ranks(ranks: Ranks) -> Iterator[tuple[str, Tensor]]:
    for group in ranks.groups.values():
        for name, A, B in zip(group.names, group.A_of, group.B_of, strict=True):
            if A.grad is not None and B.grad is not None:
                yield f"{name}.lora_A", A.grad.double()
                yield f"{name}.lora_B", B.grad.double().T


def _joined(gradients: Gradients, order: Gradients) -> Tensor:
    _refuse_other_names(gradients, order)
    return torch.cat([gradients[name].flatten() for name in order])


def _refuse_other_names(found: Gradients, expected: Gradients) -> None:
    if found.keys() != expected.keys():
        odd = sorted(found.keys() ^ expected.keys())
        raise ValueError(f"only one side has a gradient of {odd[0]}")
