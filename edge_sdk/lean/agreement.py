"""Where products of integers may stand in for wide ones: tried on the device's own examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from edge_sdk.lean.frozen import FrozenMatrix
from edge_sdk.lean.llama import HEAD, Llama
from edge_sdk.lean.packing import pack
from edge_sdk.lean.products import IntegerProducts, Operand, Products, WideProducts
from edge_sdk.lean.ranks import Ranks
from edge_sdk.text.example import Example

LEAST_COSINE = 0.998
"""Between a layer's product of integers and its wide one, forward and backward."""
_TOKENS = 96  # enough to meet the columns that stand out, few enough to need little memory


class _ComparedProducts:
    """Computes wide products, and notes how far those of integers are from them."""

    def __init__(self, integer: Products, wide: Products, cosines: list[float]) -> None:
        self._integer = integer
        self._wide = wide
        self._cosines = cosines

    def forward(self, operand: Operand, weight: FrozenMatrix, y: Tensor, is_added: bool) -> None:
        self._compare(y, is_added, lambda how, out: how.forward(operand, weight, out, False))

    def backward(self, g: Tensor, weight: FrozenMatrix, dx: Tensor, is_added: bool) -> None:
        self._compare(dx, is_added, lambda how, out: how.backward(g, weight, out, False))

    def _compare(
        self, out: Tensor, is_added: bool, write: Callable[[Products, Tensor], None]
    ) -> None:
        exact, rounded = torch.empty_like(out), torch.empty_like(out)
        write(self._wide, exact)
        write(self._integer, rounded)
        if is_added:
            out.add_(exact)
        else:
            out.copy_(exact)
        cosine = torch.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0)
        self._cosines.append(float(cosine))


def layer_agreement(llama: Llama, ranks: Ranks, examples: Sequence[Example]) -> dict[str, float]:
    """Return, for each layer, the lower cosine of its two products on a few examples.

    Args:
        llama: Passes whose products are wide.
        ranks: As they are at the start of a round; their gradients are zero afterwards.
        examples: Of the device; a few of the first ones are used.
    """
    cosines = {name: list[float]() for name in llama.linear_names}
    workspace = llama.workspace
    integer, wide = IntegerProducts(workspace), WideProducts(workspace)
    llama.use_products({x: _ComparedProducts(integer, wide, y) for x, y in cosines.items()})
    batch = pack(_few(examples))
    llama.add_gradients(batch, ranks, 1.0, recomputed=len(cosines))
    ranks.zero_gradients()
    cosines[HEAD] = [llama.head_agreement(batch, ranks, integer)]
    # a layer in or below the first trained block may have no product going back
    return {name: min(found) for name, found in cosines.items()}


def _few(examples: Sequence[Example]) -> list[Example]:
    """Return the first examples, each up to its last learned token and not from too far before."""
    chosen, tokens = list[Example](), 0
    for example in examples:
        end = int(np.flatnonzero(example.is_learned).max(initial=0)) + 1
        if tokens + end > _TOKENS and chosen:
            break
        cut = slice(max(0, end - _TOKENS), end)
        chosen.append(Example(example.tokens[cut], example.is_learned[cut]))
        tokens += len(chosen[-1].tokens)
    return chosen
