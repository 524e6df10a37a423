"""Real data to fine-tune on: two sets of questions, tokenized as a device tokenizes its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from demo import commonsense, trec
from edge_sdk.text.example import Example
from edge_sdk.text.token_file import tokenized_examples
from edge_sdk.wire.task import BaseModel

EXAMPLES = 512
MAX_LENGTH = 128


def fine_tuning_sets(
    tokenizer_folder: Path, examples: int = EXAMPLES, max_length: int = MAX_LENGTH
) -> dict[str, list[Example]]:
    """Return the first examples of each set by its name; only completions are learned.

    The texts are fetched on first use, and tokenized in a process of their own: this one imports
    no tokenizer.

    Args:
        tokenizer_folder: Base model, a causal LM; its tokenizer is used.
        examples: Of each set, at most.
        max_length: Tokens per example, at most; longer ones lose their beginning.

    Returns:
        ``question-type`` (short completions of one word) and ``commonsense`` (whole answers).

    Raises:
        DataError: A set cannot be fetched or read.
        ModelError: The tokenizer cannot be loaded.
    """
    texts = {
        "question-type": [trec.record(x) for x in trec.questions()[:examples]],
        "commonsense": [commonsense.record(x) for x in commonsense.questions()[:examples]],
    }
    return {
        name: _tokenized(records, tokenizer_folder, max_length) for name, records in texts.items()
    }


def _tokenized(records: Sequence[dict[str, str]], folder: Path, max_length: int) -> list[Example]:
    # Tokenizing looks at the kind of model only, not at which one it is.
    base = BaseModel(model=folder.name, digest="0" * 64)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "examples.jsonl"
        data.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
        return tokenized_examples(data, folder, base, max_length)
