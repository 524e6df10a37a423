"""Gradients on real weights and one real batch, each against fp64 on the same values, as JSON.

The values are those a base is held in, so this is the error of computing, not of quantizing. The
ranks are numbers that bf16 holds exactly: a method that keeps them in it loses nothing by that.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from bench import peft_methods
from bench.example_file import padded, read_examples
from bench.gradients import Gradients, cosine, difference, lean_gradients, peft_gradients
from bench.lean_methods import lean_base
from bench.train_methods import (
    OURS_BF16,
    OURS_INT8,
    OURS_LEAN,
    OURS_NF4,
    PEFT_BF16,
    SMOLLM2,
    TEXTBOOK,
    Held,
    Method,
    adapter_of,
    first_ranks,
)
from edge_sdk.sketch import sketched_scaling
from edge_sdk.text.example import Example
from edge_sdk.wire.payload import Arrays

TEXTBOOK_BF16 = replace(TEXTBOOK, name="PEFT nf4, mixed bf16", products="bf16", checkpointing=False)
TEXTBOOK_FP32 = replace(TEXTBOOK, name="PEFT nf4, fp32", products="fp32", checkpointing=False)
METHODS = (OURS_BF16, PEFT_BF16, OURS_NF4, TEXTBOOK_BF16, TEXTBOOK_FP32, OURS_INT8, OURS_LEAN)
_REFERENCES: tuple[Held, ...] = ("bf16", "nf4", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCheck:
    """What to compare.

    Attributes:
        examples: File with one batch.
        threads: CPU threads.
    """

    examples: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientError:
    """How far one method's gradients are from others.

    Attributes:
        method: Its name.
        error: Relative difference, in the norm, to fp64 on the same values.
        cosine: With fp64 on the same values.
        cosine_bf16: With our own gradients on a base in bf16: quantizing counts here, too.
    """

    method: str
    error: float
    cosine: float
    cosine_bf16: float


def main() -> int:
    """Compare what the first argument says."""
    check = msgspec.json.decode(sys.argv[1], type=GradientCheck)
    rows = [dataclasses.asdict(row) for row in compare(check)]
    sys.stdout.write(json.dumps(rows) + "\n")
    return 0


def compare(check: GradientCheck) -> Iterator[GradientError]:
    """Yield the errors of every method."""
    torch.set_num_threads(check.threads)
    examples = read_examples(Path(check.examples))
    ranks = {
        name: torch.from_numpy(array).bfloat16().float().numpy()
        for name, array in first_ranks(SMOLLM2).items()
    }
    references = {held: _ours(_holding(held), ranks, examples, True) for held in _REFERENCES}
    own_bf16 = _ours(OURS_BF16, ranks, examples)
    for method in METHODS:
        is_ours = method.module == OURS_BF16.module
        found = _ours(method, ranks, examples) if is_ours else _theirs(method, check, examples)
        reference = references[method.held]
        yield GradientError(
            method=method.name,
            error=difference(found, reference),
            cosine=cosine(found, reference),
            cosine_bf16=cosine(found, own_bf16),
        )
        gc.collect()


def _holding(held: Held) -> Method:
    return replace(OURS_BF16, held=held)


def _ours(
    method: Method, ranks: Arrays, examples: Sequence[Example], is_reference: bool = False
) -> Gradients:
    base, adapter = lean_base(method, SMOLLM2, torch.get_num_threads()), adapter_of(SMOLLM2)
    scale = sketched_scaling(adapter.lora_alpha, adapter.r, SMOLLM2.k, adapter.use_rslora)
    return lean_gradients(base, adapter, ranks, scale, examples, is_reference=is_reference)


def _theirs(method: Method, check: GradientCheck, examples: Sequence[Example]) -> Gradients:
    model = peft_methods.adapted_model(method, SMOLLM2, check.threads)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(parameter.bfloat16())
    with peft_methods.precision(method):
        loss = model(**padded(examples)).loss
    loss.backward()
    return peft_gradients(model)


if __name__ == "__main__":
    sys.exit(main())
