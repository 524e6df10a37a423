"""Loss and gradients of a Llama-shaped model, passed forward and back by hand.

Of every block only its input, queries, keys, values, the attention's output, the second input, gate
and up are kept. What lies between them is computed again, element by element, going back: no matrix
product is repeated. Examples are packed: products see all tokens, attention each example alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_sdk.compute.execution import ProductFormat
from edge_sdk.lean.architecture import Architecture
from edge_sdk.lean.attention import PackedAttention
from edge_sdk.lean.frozen import FrozenMatrix
from edge_sdk.lean.packing import PackedBatch
from edge_sdk.lean.products import IntegerProducts, Operand, Products, WideProducts
from edge_sdk.lean.ranks import Ranks
from edge_sdk.lean.row_operations import (
    gate_backward,
    gate_forward,
    norm_backward,
    norm_forward,
    rotate,
)
from edge_sdk.lean.vocabulary_loss import vocabulary_loss
from edge_sdk.lean.workspace import Workspace

_QUERIES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_ATTENDED = ("self_attn.o_proj",)
_GATES = ("mlp.gate_proj", "mlp.up_proj")
_DOWN = ("mlp.down_proj",)
_GROUPS = (_QUERIES, _ATTENDED, _GATES, _DOWN)
HEAD = "lm_head"
"""Name of the output head, also of a tied one, where layers are exempt."""
_SCRATCH = "scratch"  # where a block keeps what is not to last


def input_groups(num_layers: int) -> list[list[str]]:
    """Return the full names of layers that share an input, for every input of every block."""
    return [
        [f"model.layers.{i}.{name}" for name in group]
        for i in range(num_layers)
        for group in _GROUPS
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """The frozen weights of a model.

    Attributes:
        matrices: Linear layers, embedding and an untied head, by module name.
        vectors: Norm weights and biases, by tensor name.
    """

    matrices: Mapping[str, FrozenMatrix]
    vectors: Mapping[str, Tensor]


class Llama:
    """The passes over one model.

    Args:
        architecture: Of the model.
        frozen: Its weights.
        dtype: Format of the activations: fp32, bf16 where the CPU multiplies it, fp64 for checks.
        kept: Format of what is kept from the forward to the backward pass.
        products: Format of the products with frozen weights, but for layers in ``exempt``.
        exempt: Layers whose products are always wide.
        length: Tokens of the longest example.
    """

    def __init__(
        self,
        architecture: Architecture,
        frozen: Frozen,
        *,
        dtype: torch.dtype,
        kept: torch.dtype,
        products: ProductFormat,
        exempt: frozenset[str] = frozenset(),
        length: int,
    ) -> None:
        self.architecture = architecture
        self.workspace = Workspace()
        self._matrices = frozen.matrices
        self._vectors = {name: x.to(dtype) for name, x in frozen.vectors.items()}
        self._dtype = dtype
        self._kept_dtype = kept
        wide, integer = WideProducts(self.workspace), IntegerProducts(self.workspace)
        chosen: Products = integer if products == "int8" else wide
        self._head_products = integer if products == "int8" and HEAD not in exempt else None
        self._products: dict[str, Products] = {
            name: wide if name in exempt else chosen for name in self.linear_names
        }
        self._rotation = architecture.rotation(length, dtype)
        self._statistics = dict[str, list[Tensor]]()

    def loss(self, batch: PackedBatch, ranks: Ranks) -> float:
        """Return the summed loss of a batch."""
        ranks.narrow(self._dtype)
        h = self._embedded(batch)
        for layer in range(self._layers):
            self._forward(layer, h, batch, ranks, _SCRATCH)
        return self._head(h, batch, None, 1.0)

    def add_gradients(
        self, batch: PackedBatch, ranks: Ranks, share: float, recomputed: int = 0
    ) -> float:
        """Add the gradients of ``share`` times the summed loss; return that loss.

        Args:
            batch: Packed examples.
            ranks: Whose gradients are added to.
            share: Factor of the loss.
            recomputed: Blocks that keep their input alone and are passed again going back.
        """
        ranks.narrow(self._dtype)
        first = self._first_trained(ranks)
        h = self._embedded(batch)
        for layer in range(self._layers):
            if layer >= first:
                self._keep(f"{layer}.input", h)
            own = str(layer) if layer >= first + recomputed else _SCRATCH
            self._forward(layer, h, batch, ranks, own)
        gradient = self._take("stream gradient", h.shape)
        loss = self._head(h, batch, gradient, share)
        for layer in reversed(range(first, self._layers)):
            own = str(layer) if layer >= first + recomputed else _SCRATCH
            if own == _SCRATCH:
                h.copy_(self._again(f"{layer}.input", h.shape))
                self._forward(layer, h, batch, ranks, own)
            self._backward(layer, gradient, batch, ranks, own, is_first=layer == first)
        return loss

    def head_agreement(self, batch: PackedBatch, ranks: Ranks, products: IntegerProducts) -> float:
        """Return the cosine of the gradients the head gives with and without integers."""
        ranks.narrow(self._dtype)
        h = self._embedded(batch)
        for layer in range(self._layers):
            self._forward(layer, h, batch, ranks, _SCRATCH)
        found = []
        for chosen in (None, products):
            self._head_products = chosen
            gradient = self._take("stream gradient", h.shape)
            self._head(h, batch, gradient, 1.0)
            found.append(gradient.flatten().clone())
        return float(torch.cosine_similarity(found[0], found[1], dim=0))

    @property
    def linear_names(self) -> list[str]:
        """Names of the linear layers inside the blocks."""
        return [layer.name for layer in self.architecture.shape.linears]

    def use_products(self, products: Mapping[str, Products]) -> None:
        """Compute the products of some layers in another way."""
        self._products.update(products)

    @property
    def _layers(self) -> int:
        return self.architecture.shape.num_layers

    def _first_trained(self, ranks: Ranks) -> int:
        """Return the lowest block with a trained layer; nothing below it needs a gradient."""
        groups = input_groups(self._layers)
        found = (i for i, names in enumerate(groups) if ranks.is_trained(names))
        return next(found, len(groups)) // len(_GROUPS)

    def _embedded(self, batch: PackedBatch) -> Tensor:
        rows = self._matrices["model.embed_tokens"].rows(batch.tokens, self._dtype)
        return self._take("stream", rows.shape).copy_(rows)

    def _head(self, h: Tensor, batch: PackedBatch, gradient: Tensor | None, share: float) -> float:
        """Return the loss; ``gradient`` becomes that of the stream ``h``."""
        head = self._matrices["model.embed_tokens" if self.architecture.is_tied else "lm_head"]
        shape = (len(batch.places), h.shape[1])
        chosen, normed = self._take("chosen", shape), self._take("chosen normed", shape)
        torch.index_select(h, 0, batch.places, out=chosen)
        inverse = self._norm("model.norm.weight", chosen, normed)
        wanted = None if gradient is None else self._take("chosen gradient", shape)
        loss = vocabulary_loss(
            normed,
            head,
            batch.targets,
            self.workspace,
            gradient=wanted,
            share=share,
            products=self._head_products,
        )
        if gradient is not None and wanted is not None:
            back = normed.zero_()
            norm_backward(wanted, chosen, self._vectors["model.norm.weight"], inverse, back)
            gradient.zero_().index_copy_(0, batch.places, back)
        return loss

    def _forward(self, layer: int, h: Tensor, batch: PackedBatch, ranks: Ranks, own: str) -> None:
        """Pass one block: ``h`` becomes its output; what is kept goes under the name ``own``."""
        shape, rows = self.architecture.shape, len(h)
        normed = self._take("normed", h.shape)
        self._norm(_weight(layer, "input_layernorm"), h, normed)
        sizes = (shape.q_size, shape.kv_size, shape.kv_size)
        raw = [self._take(name, (rows, size)) for name, size in zip("qkv", sizes, strict=True)]
        self._project(layer, _QUERIES, normed, raw, ranks)
        for name, x in zip("qkv", raw, strict=True):
            x.copy_(self._keep(f"{own}.{name}", x))  # so that going back finds the same scores
        q, k = self._placed(layer, "q", raw[0], batch), self._placed(layer, "k", raw[1], batch)
        attended = self._take("attended", raw[0].shape)
        self._statistics[own] = self._attention(batch).forward(q, k, raw[2], attended)
        self._keep(f"{own}.attended", attended)
        self._project(layer, _ATTENDED, attended, [h], ranks, is_added=True)
        self._keep(f"{own}.middle", h)
        self._norm(_weight(layer, "post_attention_layernorm"), h, normed)
        inner = (rows, shape.intermediate_size)
        gate, up, gated = (self._take(name, inner) for name in ("gate", "up", "gated"))
        self._project(layer, _GATES, normed, [gate, up], ranks)
        self._keep(f"{own}.gate", gate)
        self._keep(f"{own}.up", up)
        gate_forward(gate, up, gated)
        self._project(layer, _DOWN, gated, [h], ranks, is_added=True)

    def _backward(
        self,
        layer: int,
        gradient: Tensor,
        batch: PackedBatch,
        ranks: Ranks,
        own: str,
        is_first: bool,
    ) -> None:
        """Pass one block back: the gradient of its output becomes that of its input.

        The first trained block has no use for the gradient of its input.
        """
        shape, rows = self.architecture.shape, len(gradient)
        inner = (rows, shape.intermediate_size)
        gate, up = self._again(f"{own}.gate", inner), self._again(f"{own}.up", inner)
        dgated = self._take("gated", inner)
        backward = self._product_back(layer, _DOWN, [gradient], dgated, ranks)
        gate_backward(dgated, gate, up)
        gated = dgated  # it was turned into that
        self._learn(layer, _DOWN, [gradient], backward, gated, ranks)
        middle = self._again(f"{own}.middle", gradient.shape)
        norm = "post_attention_layernorm"
        self._normed_back(layer, norm, _GATES, [gate, up], middle, gradient, ranks)

        attended = self._again(f"{own}.attended", (rows, shape.q_size))
        dattended = self._take("attended gradient", attended.shape)
        backward = self._product_back(layer, _ATTENDED, [gradient], dattended, ranks)
        self._learn(layer, _ATTENDED, [gradient], backward, attended, ranks)
        gradients = self._attend_back(layer, dattended, attended, batch, own)
        x = self._again(f"{layer}.input", gradient.shape)
        out = None if is_first else gradient
        self._normed_back(layer, "input_layernorm", _QUERIES, gradients, x, out, ranks)

    def _attend_back(
        self, layer: int, gradient: Tensor, attended: Tensor, batch: PackedBatch, own: str
    ) -> list[Tensor]:
        """Return the gradients of queries, keys and values as they left their layers."""
        shape, rows = self.architecture.shape, len(gradient)
        sizes = (shape.q_size, shape.kv_size, shape.kv_size)
        raw = [
            self._again(f"{own}.{name}", (rows, size))
            for name, size in zip("qkv", sizes, strict=True)
        ]
        q, k = self._placed(layer, "q", raw[0], batch), self._placed(layer, "k", raw[1], batch)
        dq, dk, dv = (self._take(f"{n} gradient", x.shape) for n, x in zip("qkv", raw, strict=True))
        self._attention(batch).backward(
            gradient, (q, k, raw[2]), attended, self._statistics.pop(own), (dq, dk, dv)
        )
        dq = self._placed_back(layer, "q", dq, raw[0], batch)
        dk = self._placed_back(layer, "k", dk, raw[1], batch)
        return [dq, dk, dv]

    def _attention(self, batch: PackedBatch) -> PackedAttention:
        size = self.architecture.head_size
        heads = self.architecture.shape.q_size // size
        key_heads = self.architecture.shape.kv_size // size
        return PackedAttention(batch.lengths, heads, key_heads, size, self.workspace)

    def _placed(self, layer: int, name: str, raw: Tensor, batch: PackedBatch) -> Tensor:
        """Return queries or keys, normed if the family does so, and rotated by their position."""
        placed = self._take(f"placed {name}", raw.shape)
        heads = placed.view(len(raw), -1, self.architecture.head_size)
        weight = f"model.layers.{layer}.self_attn.{name}_norm.weight"
        if weight in self._vectors:
            self._norm(weight, raw.view(-1, heads.shape[2]), heads.view(-1, heads.shape[2]))
        else:
            placed.copy_(raw)
        rotate(heads, self._rotation, batch.positions, 1.0)
        return placed

    def _placed_back(
        self, layer: int, name: str, gradient: Tensor, raw: Tensor, batch: PackedBatch
    ) -> Tensor:
        """Return the gradient of what :meth:`_placed` took; overwrites ``gradient``."""
        size = self.architecture.head_size
        rotate(gradient.view(len(gradient), -1, size), self._rotation, batch.positions, -1.0)
        weight = f"model.layers.{layer}.self_attn.{name}_norm.weight"
        if weight not in self._vectors:
            return gradient
        flat, placed = raw.view(-1, size), self._take(f"placed {name}", raw.shape)
        inverse = self._norm(weight, flat, placed.view(-1, size))
        back = placed.zero_()
        norm_backward(
            gradient.view(-1, size), flat, self._vectors[weight], inverse, back.view(-1, size)
        )
        return back

    def _norm(self, weight: str, x: Tensor, y: Tensor) -> Tensor:
        """Write the norm of ``x`` to ``y``; return ``(rows,)``, one over its root mean square."""
        inverse = self._take("inverse", (len(x),))
        norm_forward(x, self._vectors[weight], self.architecture.epsilon, y, inverse)
        return inverse

    def _normed_back(
        self,
        layer: int,
        norm: str,
        group: Sequence[str],
        gradients: Sequence[Tensor],
        x: Tensor,
        out: Tensor | None,
        ranks: Ranks,
    ) -> None:
        """Learn a group behind a norm, and add the gradient of the norm's input to ``out``."""
        normed = self._take("normed", x.shape)
        inverse = self._norm(_weight(layer, norm), x, normed)
        dnormed = None if out is None else self._take("normed gradient", x.shape)
        backward = self._product_back(layer, group, gradients, dnormed, ranks)
        self._learn(layer, group, gradients, backward, normed, ranks)
        if out is not None and dnormed is not None:
            norm_backward(dnormed, x, self._vectors[_weight(layer, norm)], inverse, out)

    def _project(
        self,
        layer: int,
        group: Sequence[str],
        x: Tensor,
        outputs: Sequence[Tensor],
        ranks: Ranks,
        is_added: bool = False,
    ) -> None:
        """Write, or add, what each layer of a group makes of ``x``."""
        names = [f"model.layers.{layer}.{name}" for name in group]
        operand = Operand(x, self.workspace)
        for name, y in zip(names, outputs, strict=True):
            self._products[name].forward(operand, self._matrices[name], y, is_added)
            bias = self._vectors.get(f"{name}.bias")
            if bias is not None:
                y.add_(bias)
        adapted = ranks.groups.get(names[0])
        if adapted is not None:
            reduced = adapted.reduce(x, self.workspace)
            for i, name in enumerate(adapted.names):
                adapted.add(i, reduced, outputs[names.index(name)])

    def _product_back(
        self,
        layer: int,
        group: Sequence[str],
        gradients: Sequence[Tensor],
        dx: Tensor | None,
        ranks: Ranks,
    ) -> Tensor | None:
        """Write the gradient of a group's input to ``dx``; return that of its ranks."""
        names = [f"model.layers.{layer}.{name}" for name in group]
        if dx is not None:
            for i, (name, g) in enumerate(zip(names, gradients, strict=True)):
                self._products[name].backward(g, self._matrices[name], dx, is_added=i > 0)
        adapted = ranks.groups.get(names[0])
        if adapted is None:
            return None
        chosen = [gradients[names.index(name)] for name in adapted.names]
        return adapted.back(chosen, dx, self.workspace)

    def _learn(
        self,
        layer: int,
        group: Sequence[str],
        gradients: Sequence[Tensor],
        backward: Tensor | None,
        x: Tensor,
        ranks: Ranks,
    ) -> None:
        """Add the gradients of the ranks of a group."""
        if backward is None:
            return
        names = [f"model.layers.{layer}.{name}" for name in group]
        adapted = ranks.groups[names[0]]
        chosen = [gradients[names.index(name)] for name in adapted.names]
        adapted.learn(chosen, backward, x, self.workspace)

    def _take(self, name: str, shape: Sequence[int]) -> Tensor:
        return self.workspace.take(name, shape, self._dtype)

    def _keep(self, name: str, x: Tensor) -> Tensor:
        """Keep a tensor for the way back; return it as it is kept."""
        return self.workspace.take(name, x.shape, self._kept_dtype).copy_(x)

    def _again(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return what was kept, in the format of the activations; it may be overwritten."""
        kept = self.workspace.take(name, shape, self._kept_dtype)
        if self._kept_dtype == self._dtype:
            return kept
        return self._take(name.rpartition(".")[2], shape).copy_(kept)


def _weight(layer: int, norm: str) -> str:
    return f"model.layers.{layer}.{norm}.weight"
