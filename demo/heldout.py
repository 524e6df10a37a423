"""Measure a base model, with or without an adapter, on held-out questions; prints JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from demo.trec import LABEL_WORDS
from edge_sdk.general.base_model import load_base
from edge_sdk.general.evaluation import choice_scores
from edge_sdk.general.generation import load_with_adapter
from edge_sdk.model.model_folder import weights_digest
from edge_sdk.wire.task import BaseModel


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
    records = [json.loads(line) for line in options.heldout.read_text("utf-8").splitlines()]
    words = list(LABEL_WORDS.values())
    scores = choice_scores(base, [record["prompt"] for record in records], words)
    right = np.array([words.index(record["completion"]) for record in records])
    result = {
        "examples": len(records),
        "loss": -float(np.mean(scores[np.arange(len(right)), right])),
        "accuracy": float(np.mean(scores.argmax(axis=1) == right)),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
