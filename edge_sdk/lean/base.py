"""A frozen base for the hand-written passes: its prepared weights and how it computes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import torch

from edge_sdk.compute.execution import ProductFormat, Quantization
from edge_sdk.errors import WrongBaseModel
from edge_sdk.lean.agreement import LEAST_COSINE, layer_agreement
from edge_sdk.lean.architecture import Architecture, read_architecture
from edge_sdk.lean.llama import Frozen, Llama, input_groups
from edge_sdk.lean.memory_need import tokens_at_once
from edge_sdk.lean.prepared import PreparedBase, Progress, open_prepared
from edge_sdk.lean.ranks import Ranks
from edge_sdk.lean.trainee import LeanTrainee
from edge_sdk.memory.heap import allocate_exactly, release_freed_memory
from edge_sdk.text.example import Example
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec

log = logging.getLogger("edge_sdk")


@dataclass
class LeanBase:
    """A frozen Llama-shaped model, mapped from its prepared file.

    Attributes:
        prepared: Its weights.
        architecture: Its sizes.
        products: Format of the products with frozen weights.
        compute_dtype: Number format of activations.
        exempt: Layers whose products stay wide because integers do not agree well enough there;
            None until that was tried on real examples.
    """

    prepared: PreparedBase
    architecture: Architecture
    products: ProductFormat
    compute_dtype: torch.dtype
    exempt: frozenset[str] | None = None

    @property
    def quantization(self) -> Quantization:
        """Number format of the linear layers inside the blocks."""
        return self.prepared.quantization

    @property
    def kept_dtype(self) -> torch.dtype:
        """Number format of what is kept from the forward to the backward pass."""
        return torch.float32 if self.quantization == "fp32" else torch.bfloat16

    def passes(self, length: int, products: ProductFormat | None = None) -> Llama:
        """Return the passes for examples of up to ``length`` tokens."""
        return Llama(
            self.architecture,
            Frozen(matrices=self.prepared.matrices, vectors=self.prepared.vectors),
            dtype=self.compute_dtype,
            kept=self.kept_dtype,
            products=products or self.products,
            exempt=self.exempt or frozenset(),
            length=length,
        )

    def trainee(
        self,
        adapter: AdapterSpec,
        slices: Arrays,
        scale: float,
        trained_targets: Collection[str] | None,
        examples: Sequence[Example],
        micro_batch: int | None,
        recomputed_blocks: int,
    ) -> LeanTrainee:
        """Return ranks of one sketch on this base.

        Args:
            adapter: Names and sizes.
            slices: Every tensor of ``adapter_shapes(adapter, k)`` for one k; copied.
            scale: Of ``B A`` in the forward.
            trained_targets: Endings of the layer names to train; None trains all.
            examples: All local examples.
            micro_batch: Examples of full length computed at once; None computes a step at once.
            recomputed_blocks: Blocks that keep their input alone.

        Raises:
            AdapterError: The slices are not those of the adapter.
        """
        longest = max(len(example.tokens) for example in examples)
        groups = input_groups(self.architecture.shape.num_layers)
        ranks = Ranks(adapter, slices, scale, trained_targets, groups)
        products = self.products
        if products == "int8" and self.exempt is None:
            if ranks.parameters():
                self.exempt = self._disagreeing(ranks, examples, longest)
            else:
                products = "wide"  # integers are tried going back as well, and nothing is trained
        capacity = None if micro_batch is None else tokens_at_once(micro_batch, longest)
        return LeanTrainee(self.passes(longest, products), ranks, capacity, recomputed_blocks)

    def _disagreeing(
        self, ranks: Ranks, examples: Sequence[Example], longest: int
    ) -> frozenset[str]:
        """Return the layers whose products must stay wide."""
        agreement = layer_agreement(self.passes(longest, "wide"), ranks, examples)
        found = frozenset(name for name, cosine in agreement.items() if not cosine >= LEAST_COSINE)
        if found:
            log.info(
                "8-bit arithmetic is too coarse for %d of %d layers: they keep more digits",
                len(found),
                len(agreement),
            )
        return found

    def verify_layers(self, adapter: AdapterSpec) -> None:
        """Check that the model has every layer of an adapter, in its size.

        Raises:
            WrongBaseModel: Says the first one that is missing or differs.
        """
        sizes = {x.name: (x.d_in, x.d_out) for x in self.architecture.shape.linears}
        for layer in adapter.layers:
            found = sizes.get(layer.name)
            if found != (layer.d_in, layer.d_out):
                there = "nothing" if found is None else f"a layer {found[0]} -> {found[1]}"
                raise WrongBaseModel(
                    f"the task adapts the linear layer {layer.name} ({layer.d_in} -> "
                    f"{layer.d_out}), this base model has {there} there: hold the base model "
                    "that the task names"
                )
        if adapter.dense:
            raise WrongBaseModel(
                f"the task trains {adapter.dense[0].name}, this base model is trained without: "
                "hold the base model that the task names"
            )


def prepared_cache() -> Path:
    """Return the folder in which prepared bases are kept."""
    return platformdirs.user_cache_path("edge-sdk") / "prepared"


def open_lean_base(
    folder: Path,
    quantization: Quantization,
    products: ProductFormat = "wide",
    threads: int | None = None,
    progress: Progress | None = None,
    computes_in_bf16: bool = False,
) -> LeanBase:
    """Map a base model, after preparing it once if need be.

    Args:
        folder: Hugging Face folder of a model for which ``why_not_lean`` gives no reason.
        quantization: Number format of the linear layers inside the blocks.
        products: Format of the products with frozen weights.
        threads: CPU threads of the whole process; None leaves them as they are.
        progress: Told how far preparing is.
        computes_in_bf16: Activations are bf16, where products are wide and the base is not fp32.

    Raises:
        ModelError: The model cannot be used.
        StorageError: The prepared file cannot be written.
    """
    allocate_exactly()
    if threads is not None:
        torch.set_num_threads(threads)
    prepared = open_prepared(folder, quantization, prepared_cache(), progress, products)
    release_freed_memory()
    is_bf16 = computes_in_bf16 and products == "wide" and quantization != "fp32"
    return LeanBase(
        prepared,
        read_architecture(prepared.config),
        products,
        torch.bfloat16 if is_bf16 else torch.float32,
    )
