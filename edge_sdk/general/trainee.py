"""One round's ranks on any Hugging Face model: gradients by autograd, values at the end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice

import torch
from torch import Tensor, nn

from edge_sdk.general.checkpointing import checkpointed_blocks
from edge_sdk.general.loaded_model import LoadedModel
from edge_sdk.general.lora import attach
from edge_sdk.general.predictions import predict
from edge_sdk.model.scores import Score
from edge_sdk.sketch import Factors
from edge_sdk.text.batches import Batch, collate
from edge_sdk.text.example import Example
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec


class GenericTrainee:
    """The ranks one device trains in one round, put on a model.

    Args:
        base: The frozen model; as before after :meth:`detach`.
        adapter: Names and sizes.
        slices: Every tensor of ``adapter_shapes(adapter, k)`` for one k; copied.
        scale: Of ``B A`` in the forward.
        trained_targets: Endings of the layer names to train; None trains all.
        micro_batch: Examples computed at once; None computes a step at once.
        recomputed_blocks: Blocks that keep their input alone.

    Raises:
        AdapterError: The slices are not those of the adapter.
    """

    def __init__(
        self,
        base: LoadedModel,
        adapter: AdapterSpec,
        slices: Arrays,
        scale: float,
        trained_targets: Collection[str] | None,
        micro_batch: int | None,
        recomputed_blocks: int,
    ) -> None:
        self._base = base
        self._micro_batch = micro_batch
        self._undo = ExitStack()
        self._attached = attach(base.model, adapter, slices, scale, trained_targets)
        self._undo.callback(self._attached.detach)
        self._undo.enter_context(checkpointed_blocks(base.model, recomputed_blocks))

    def parameters(self, factors: Factors = "AB") -> list[nn.Parameter]:
        """Return what is trained when these factors are; dense parameters always are."""
        return self._attached.parameters(factors)

    def gradients(self, examples: Sequence[Example]) -> float:
        """Set the gradients to those of the mean loss over everything learned; return it."""
        for parameter in self.parameters():
            parameter.grad = None
        at_once = self._micro_batch or len(examples)
        parts = [examples[i : i + at_once] for i in range(0, len(examples), at_once)]
        batches = [collate(part, self._base.tokenizer.pad_token_id) for part in parts]
        count = sum(batch.count() for batch in batches)
        total = 0.0
        for batch in batches:
            loss = self._share_of_loss(batch, count)
            total += float(loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
        return total

    def arrays(self) -> Arrays:
        """Return copies of all values, trained or not, under the names the wire uses."""
        return self._attached.arrays()

    def pull(self, towards: Arrays, share: float) -> None:
        """Move every trained value a share of the way to another; names are those of the wire."""
        self._attached.pull(towards, share)

    def scores(self, examples: Iterable[Example]) -> Iterator[Score]:
        """Yield how well the model with these ranks predicts each example; no gradients."""
        rest = iter(examples)
        while some := list(islice(rest, self._micro_batch or 1)):
            batch = collate(some, self._base.tokenizer.pad_token_id)
            with torch.inference_mode():
                predictions = predict(self._base, batch)
                losses = (-predictions.log_probabilities() / predictions.counts()).tolist()
                classes = predictions.logits[:, 0].argmax(dim=-1).tolist()
            for example, loss, found in zip(some, losses, classes, strict=True):
                yield Score(loss, None if example.label is None else found == example.label)

    def detach(self) -> None:
        """Give the model its own modules back."""
        self._undo.close()

    def _share_of_loss(self, batch: Batch, count: int) -> Tensor:
        """Return what one micro-batch adds to the mean; its logits are let go on return."""
        return predict(self._base, batch).summed_loss() / count
