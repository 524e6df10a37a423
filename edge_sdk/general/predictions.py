"""What a model says about the targets of a batch: logits where they count, and the loss."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edge_sdk.general.loaded_model import LoadedModel
from edge_sdk.text.batches import IGNORED, Batch


@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits and targets of a batch.

    Attributes:
        logits: ``(n, s, classes)``: for each example, ``s`` places where something is predicted.
        targets: ``(n, s)``: what should come there, ``IGNORED`` where nothing is learned.
    """

    logits: Tensor
    targets: Tensor

    def summed_loss(self) -> Tensor:
        """Return the cross-entropy summed over everything learned."""
        return self._losses().sum()

    def count(self) -> int:
        """Return how many targets are learned."""
        return int((self.targets != IGNORED).sum())

    def counts(self) -> Tensor:
        """Return ``(n,)``: how many targets of each example are learned."""
        return (self.targets != IGNORED).sum(dim=1)

    def log_probabilities(self) -> Tensor:
        """Return ``(n,)``: the summed log-probability of each example's targets."""
        return -self._losses().sum(dim=1)

    def _losses(self) -> Tensor:
        """Return ``(n, s)`` cross-entropies in fp32 or wider, 0 where nothing is learned."""
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        losses = functional.cross_entropy(
            logits.flatten(0, 1),
            self.targets.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        return losses.view_as(self.targets)


def predict(base: LoadedModel, batch: Batch) -> Predictions:
    """Run the model as it is now, adapter attached or not, on a batch.

    A causal LM computes logits only for places where some example of the batch has a target:
    over a large vocabulary they are the largest tensor of a training step.
    """
    ids, mask = batch.input_ids.to(base.device), batch.attention_mask.to(base.device)
    targets = batch.targets.to(base.device)
    if base.spec.task_type == "SEQ_CLS":
        logits = base.model(input_ids=ids, attention_mask=mask).logits
        return Predictions(logits.unsqueeze(1), targets.unsqueeze(1))
    following = targets[:, 1:]
    places = torch.nonzero((following != IGNORED).any(dim=0)).squeeze(1)
    if "logits_to_keep" in inspect.signature(base.model.forward).parameters:
        output = base.model(input_ids=ids, attention_mask=mask, logits_to_keep=places)
        return Predictions(output.logits, following[:, places])
    output = base.model(input_ids=ids, attention_mask=mask)
    return Predictions(output.logits[:, places], following[:, places])
