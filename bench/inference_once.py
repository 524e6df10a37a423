"""One engine generating text in a process of its own: prints speed and memory as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from edge_sdk.device import peak_rss_bytes

Engine = Literal["nf4", "int4", "int8", "fp32", "transformers bf16", "transformers fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """What to generate.

    Attributes:
        engine: An export's weight format, or transformers with its number format.
        model: Folder of the base model.
        adapter: PEFT folder; transformers merges it, which is its fastest way.
        prompt: Token ids.
        new_tokens: After the first one.
        repetitions: Texts; the fastest counts.
        threads: CPU threads.
    """

    engine: Engine
    model: str
    adapter: str
    prompt: list[int]
    new_tokens: int
    repetitions: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """What it took.

    Attributes:
        open_s: From nothing to a model that is ready, imports included.
        first_token_s: From the prompt to the first token.
        tokens_per_s: After the first token.
        rss_bytes: Resident memory of the process while it generates.
        peak_bytes: Peak of it, opening included.
        tokens: What was generated last.
    """

    open_s: float
    first_token_s: float
    tokens_per_s: float
    rss_bytes: int
    peak_bytes: int
    tokens: list[int]


Open = Callable[[list[int], int], Iterator[int]]


def main() -> int:
    """Generate what the first argument says."""
    talk = msgspec.json.decode(sys.argv[1], type=Talk)
    sys.stdout.write(json.dumps(dataclasses.asdict(speak(talk))) + "\n")
    return 0


def speak(talk: Talk) -> Spoken:
    """Generate the same text a few times."""
    began = time.perf_counter()
    generate = open_engine(talk.engine, talk.model, talk.adapter, talk.threads)
    open_s = time.perf_counter() - began
    first_token_s, tokens_per_s, tokens = float("inf"), 0.0, list[int]()
    for _ in range(talk.repetitions):
        began = time.perf_counter()
        text = generate(talk.prompt, talk.new_tokens + 1)
        tokens = [next(text)]
        first = time.perf_counter()
        tokens += text
        ended = time.perf_counter()
        first_token_s = min(first_token_s, first - began)
        tokens_per_s = max(tokens_per_s, (len(tokens) - 1) / (ended - first))
    return Spoken(
        open_s=open_s,
        first_token_s=first_token_s,
        tokens_per_s=tokens_per_s,
        rss_bytes=psutil.Process().memory_info().rss,
        peak_bytes=peak_rss_bytes(),
        tokens=tokens,
    )


def open_engine(engine: Engine, model: str, adapter: str, threads: int) -> Open:
    """Return a function that yields the most probable tokens after a prompt, never ending early.

    ``adapter`` is empty for the base alone.
    """
    if not engine.startswith("transformers"):
        return _onnx(engine, model, adapter, threads)
    return _transformers(engine.removeprefix("transformers "), model, adapter, threads)


def _onnx(engine: Any, model: str, adapter: str, threads: int) -> Open:
    from edge_sdk.inference import open_session

    path = Path(adapter) if adapter else None
    session = open_session(Path(model), path, weight_format=engine, threads=threads)
    session.tokenizer.end_ids = frozenset()

    def generate(prompt: list[int], count: int) -> Iterator[int]:
        return session.tokens(prompt, count)

    return generate


def _transformers(dtype: str, model: str, adapter: str, threads: int) -> Open:
    import peft
    import torch
    import transformers

    torch.set_num_threads(threads)
    numbers = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    found: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=numbers)
    if adapter:
        found = peft.PeftModel.from_pretrained(found, adapter).merge_and_unload()
    found.eval()

    def generate(prompt: list[int], count: int) -> Iterator[int]:
        """Without ``model.generate``: its bookkeeping between tokens takes time of its own."""
        given, cache = torch.tensor([prompt]), None
        for _ in range(count):
            with torch.inference_mode():
                output = found(
                    input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
            cache, given = output.past_key_values, output.logits[:, -1:].argmax(dim=-1)
            yield int(given)

    return generate


if __name__ == "__main__":
    sys.exit(main())
