"""Measure a base model, with or without an adapter, on held-out questions; prints JSON."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from demo.trec import LABEL_WORDS
from edge_sdk.base_model import load_base
from edge_sdk.data import load_examples
from edge_sdk.evaluation import choice_accuracy, completion_loss
from edge_sdk.generation import load_with_adapter
from edge_sdk.model_folder import weights_digest
from edge_sdk.wire.messages import BaseModel

MAX_LENGTH = 256


def main() -> None:
    """Print ``{"examples", "loss", "accuracy"}`` for one model on one file.

    The loss is that of the answer word given the question, without the end token after it:
    that one is learned at once and would flatter the result.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    spec = BaseModel(model=str(options.model), digest=weights_digest(options.model))
    if options.adapter is None:
        base = load_base(options.model, spec, "nf4", options.threads)
    else:
        base = load_with_adapter(options.model, options.adapter, "nf4", options.threads)
    examples = [
        replace(example, tokens=example.tokens[:-1], is_learned=example.is_learned[:-1])
        for example in load_examples(options.heldout, base.tokenizer, spec, MAX_LENGTH)
    ]
    records = [json.loads(line) for line in options.heldout.read_text("utf-8").splitlines()]
    accuracy = choice_accuracy(
        base,
        [record["prompt"] for record in records],
        [record["completion"] for record in records],
        list(LABEL_WORDS.values()),
    )
    loss = completion_loss(base, examples)
    result = {"examples": len(examples), "loss": loss, "accuracy": accuracy}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
