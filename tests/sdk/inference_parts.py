"""Exported tiny models, their adapters, and what torch says of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from edge_sdk.general.base_model import LoadedBase
from edge_sdk.general.generation import load_with_adapter
from edge_sdk.model.peft_folder import write_peft_folder
from edge_sdk.wire.task import BaseModel
from tests.sdk.lean_parts import save_family
from tests.sdk.parts import adapter_spec, causal_spec, random_arrays, task_spec
from tests.tiny_model import save_tokenizer

WIDE = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers of a tiny model that are wide enough for rank 64."""

PROMPTS = (
    "what is the city ?",
    "who are",
    "number one two three four five six . question : where was the country of the person",
    "red",
)


def save_model(folder: Path, family: str = "llama") -> Path:
    """Save a tiny causal LM of a family with a tokenizer."""
    return save_tokenizer(save_family(folder, family))


def save_adapter(
    folder: Path,
    base: Path,
    r: int = 8,
    spec: BaseModel | None = None,
    targets: tuple[str, ...] | None = WIDE,
    use_rslora: bool = False,
    seed: int = 0,
) -> Path:
    """Save a random PEFT adapter of a base model."""
    spec = spec or causal_spec()
    adapter = adapter_spec(base, spec, r=r, targets=targets, use_rslora=use_rslora)
    arrays = random_arrays(adapter, r, seed=seed)
    write_peft_folder(folder, task_spec(spec, adapter), arrays, str(base))
    return folder


def load_torch(base: Path, adapter: Path) -> LoadedBase:
    return load_with_adapter(base, adapter, "fp32", threads=1)


def torch_tokens(model: torch.nn.Module, ids: Sequence[int], count: int) -> list[int]:
    """What torch finds most probable, without a cache: each time the whole text."""
    text = list(ids)
    with torch.inference_mode():
        for _ in range(count):
            text.append(int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(ids) :]


def some_ids(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(6, 40, length).tolist()
