"""Training examples to padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_sdk.text.example import Example

IGNORED = -100
"""Target of a token that is not learned."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded on the right to the longest.

    Attributes:
        input_ids: ``(n, t)``.
        attention_mask: ``(n, t)``, 1 on tokens and 0 on padding.
        targets: ``(n, t)`` token ids, ``IGNORED`` where nothing is learned; for a classifier
            ``(n,)`` classes.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor

    def count(self) -> int:
        """Return how many targets are learned; a text's first token never is one."""
        learned = self.targets if self.targets.ndim == 1 else self.targets[:, 1:]
        return int((learned != IGNORED).sum())


def collate(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Pad examples to one batch.

    Args:
        examples: All with a label, or all without.
        pad_token_id: Fills the right side; the attention mask hides it.
    """
    longest = max(len(example.tokens) for example in examples)
    input_ids = torch.full((len(examples), longest), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    targets = torch.full_like(input_ids, IGNORED)
    for i, example in enumerate(examples):
        ids = torch.tensor(example.tokens)
        input_ids[i, : len(ids)] = ids
        attention_mask[i, : len(ids)] = 1
        targets[i, : len(ids)] = ids.where(torch.tensor(example.is_learned), IGNORED)
    labels = [example.label for example in examples if example.label is not None]
    return Batch(input_ids, attention_mask, torch.tensor(labels) if labels else targets)
