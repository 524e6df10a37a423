"""Tokenized examples in a JSON file, for the processes that train on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from edge_sdk.text.example import Example

_NOT_LEARNED = -100  # what transformers takes for a label that does not count


class _Record(msgspec.Struct):
    tokens: list[int]
    is_learned: list[bool]


def write_examples(path: Path, examples: Sequence[Example]) -> Path:
    """Write examples of a causal LM; return the path."""
    records = [_Record(x.tokens.tolist(), x.is_learned.tolist()) for x in examples]
    path.write_bytes(msgspec.json.encode(records))
    return path


def read_examples(path: Path) -> list[Example]:
    """Read what :func:`write_examples` wrote."""
    records = msgspec.json.decode(path.read_bytes(), type=list[_Record])
    return [Example(record.tokens, record.is_learned) for record in records]


def padded(examples: Sequence[Example], padding: int = 0) -> dict[str, Tensor]:
    """Return a batch as transformers takes it: every example as long as the longest.

    Args:
        examples: Of a causal LM.
        padding: Token id that fills up; nothing attends to it.
    """
    size = (len(examples), max(len(example.tokens) for example in examples))
    ids = torch.full(size, padding, dtype=torch.int64)
    mask = torch.zeros(size, dtype=torch.int64)
    labels = torch.full(size, _NOT_LEARNED, dtype=torch.int64)
    for row, example in enumerate(examples):
        tokens = torch.from_numpy(example.tokens).long()
        is_learned = torch.from_numpy(example.is_learned)
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, : len(tokens)] = tokens.where(is_learned, _NOT_LEARNED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
