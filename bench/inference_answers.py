"""What one engine answers, in a process of its own: tokens, right choices or swaps, as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.inference_once import Engine, open_engine
from demo.trec import LABEL_WORDS


class Tokens(msgspec.Struct, frozen=True, kw_only=True, tag_field="what", tag="tokens"):
    """The most probable tokens after each prompt.

    Attributes:
        engine: Which answers.
        model: Folder of the base model.
        adapter: PEFT folder.
        prompts: Token ids.
        new_tokens: After each prompt.
        threads: CPU threads.
    """

    engine: Engine
    model: str
    adapter: str
    prompts: list[list[int]]
    new_tokens: int
    threads: int


class Accuracy(msgspec.Struct, frozen=True, kw_only=True, tag_field="what", tag="accuracy"):
    """The share of held-out questions whose right answer is the most probable choice.

    Attributes:
        weight_format: Of the export.
        model: Folder of the base model.
        adapter: PEFT folder.
        heldout: JSONL file of questions.
        threads: CPU threads.
    """

    weight_format: Any
    model: str
    adapter: str
    heldout: str
    threads: int


class Swaps(msgspec.Struct, frozen=True, kw_only=True, tag_field="what", tag="swaps"):
    """Adapters swapped while a text is made.

    Attributes:
        weight_format: Of the export.
        model: Folder of the base model.
        adapters: PEFT folders, taken in turn; converted before, as when a version arrives.
        prompt: Token ids.
        new_tokens: Of the text; between two tokens of it, one swap.
        threads: CPU threads.
    """

    weight_format: Any
    model: str
    adapters: list[str]
    prompt: list[int]
    new_tokens: int
    threads: int


class Swapped(msgspec.Struct, frozen=True, kw_only=True):
    """What swapping did.

    Attributes:
        seconds: Of each swap.
        is_undisturbed: The text that was made meanwhile is the one made without swaps.
    """

    seconds: list[float]
    is_undisturbed: bool


def main() -> int:
    """Answer what the first argument asks."""
    asked = msgspec.json.decode(sys.argv[1], type=Tokens | Accuracy | Swaps)
    answer: object
    if isinstance(asked, Tokens):
        generate = open_engine(asked.engine, asked.model, asked.adapter, asked.threads)
        answer = [list(generate(prompt, asked.new_tokens)) for prompt in asked.prompts]
    elif isinstance(asked, Accuracy):
        answer = _accuracy(asked)
    else:
        answer = _swaps(asked)
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    return 0


def _accuracy(asked: Accuracy) -> float:
    from edge_sdk.inference import open_session

    session = open_session(
        Path(asked.model),
        Path(asked.adapter),
        weight_format=asked.weight_format,
        threads=asked.threads,
    )
    records = [json.loads(x) for x in Path(asked.heldout).read_text("utf-8").splitlines()]
    words = list(LABEL_WORDS.values())
    hits = 0
    for record in records:
        scores = session.classify(record["prompt"], words)
        hits += max(scores, key=lambda word: scores[word]) == record["completion"]
    return hits / len(records)


def _swaps(asked: Swaps) -> Swapped:
    from edge_sdk.inference import Session, open_session

    session: Session = open_session(
        Path(asked.model),
        Path(asked.adapters[0]),
        weight_format=asked.weight_format,
        threads=asked.threads,
    )
    session.tokenizer.end_ids = frozenset()
    for adapter in asked.adapters[::-1]:  # converts, and ends with the one it began with
        session.swap(Path(adapter))
    alone = list(session.tokens(asked.prompt, asked.new_tokens))
    seconds, tokens = list[float](), list[int]()
    for i, token in enumerate(session.tokens(asked.prompt, asked.new_tokens)):
        tokens.append(token)
        seconds.append(_swap(session, asked.adapters, i))
    return Swapped(seconds=seconds, is_undisturbed=tokens == alone)


def _swap(session: Any, adapters: Sequence[str], i: int) -> float:
    began = time.perf_counter()
    session.swap(Path(adapters[(i + 1) % len(adapters)]))
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
