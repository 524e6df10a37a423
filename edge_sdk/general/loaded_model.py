"""A Hugging Face model in memory, with what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch

from edge_sdk.compute.execution import Quantization
from edge_sdk.wire.task import BaseModel


@dataclass
class LoadedModel:
    """A frozen model in memory, with its tokenizer.

    Attributes:
        model: A Hugging Face model in evaluation mode; nothing in it requires a gradient.
        tokenizer: Of the same folder, with a padding token.
        spec: What the task calls it.
        quantization: Number format of the linear layers inside the blocks.
        compute_dtype: Number format of activations.
    """

    model: Any
    tokenizer: Any
    spec: BaseModel
    quantization: Quantization
    compute_dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return cast(torch.device, self.model.device)
