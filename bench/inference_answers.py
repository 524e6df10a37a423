"""What one engine answers, in a process of its own: tokens, right choices or swaps, as JSON."""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy

from bench.inference_once import Engine, open_engine
from demo.trec import LABEL_WORDS
from edge_sdk.model.peft_folder import TENSOR_FILE

_PIECES_BEFORE = 8


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
    """Versions that arrive and are swapped in, as an app's inference process gets them.

    Attributes:
        model: Folder of the base model.
        versions: PEFT folders; versions like these arrive in turn, each of them new on disk.
        served: Folder that each is written to, and converted for, by a process that ends with it.
        prompt: What the user says.
        new_tokens: Of the text that is being made.
        swaps: How many, half of them in the middle of a text.
    """

    model: str
    versions: list[str]
    served: str
    prompt: str
    new_tokens: int
    swaps: int


class Swapped(msgspec.Struct, frozen=True, kw_only=True):
    """What swapping did.

    Attributes:
        during_s: Of each swap in the middle of a text: until the next text would use the version.
        before_s: Of each other one: until the first token of a text that uses the version, less
            what that token takes without a swap.
        gaps_s: The longest wait inside each text in which an adapter was swapped.
        usual_gaps_s: The same inside each of these texts without a swap.
        is_undisturbed: The texts are those made without a swap.
    """

    during_s: list[float]
    before_s: list[float]
    gaps_s: list[float]
    usual_gaps_s: list[float]
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
    from edge_sdk.inference.host import InferenceProcess

    served = Path(asked.served)  # the order lets each rank come in the middle of a text and before
    sources = itertools.cycle(map(Path, [*asked.versions, *asked.versions[::-1]]))
    _arrive(next(sources), served, asked.model, 0)
    host = InferenceProcess(Path(asked.model), served)
    during_s, before_s = list[float](), list[float]()
    alone, disturbed = list[_Heard](), list[_Heard]()
    for i in range(1, asked.swaps, 2):
        _arrive(next(sources), served, asked.model, i)
        alone.append(_hear(host, asked))
        disturbed.append(_hear(host, asked, lambda: during_s.append(_timed(host.swap, served))))
        _arrive(next(sources), served, asked.model, i + 1)
        swapped_s = _timed(host.swap, served) + _first_token_s(host)
        before_s.append(swapped_s - statistics.median(_first_token_s(host) for _ in "123"))
    host.close()
    return Swapped(
        during_s=during_s,
        before_s=before_s,
        gaps_s=[heard.longest_gap_s for heard in disturbed],
        usual_gaps_s=[heard.longest_gap_s for heard in alone],
        is_undisturbed=[x.text for x in alone] == [x.text for x in disturbed],
    )


def _arrive(version: Path, served: Path, model: str, number: int) -> None:
    """Replace the folder by a version that was never there, as fetching one does."""
    shutil.copytree(version, served, dirs_exist_ok=True)
    tensors = safetensors.numpy.load_file(served / TENSOR_FILE)
    changed = {name: array * np.float32(1 + number / 1000) for name, array in tensors.items()}
    safetensors.numpy.save_file(changed, served / TENSOR_FILE, {"format": "pt"})
    script = (
        "import sys; from pathlib import Path; from edge_sdk.inference.ahead import convert_ahead\n"
        "convert_ahead(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", script, str(served), model], check=True)


class _Heard(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    longest_gap_s: float


def _hear(host: Any, asked: Swaps, meanwhile: Callable[[], None] | None = None) -> _Heard:
    """Listen to a text; from its eighth piece on, something is done meanwhile."""
    pieces, times = list[str](), list[float]()
    other = threading.Thread(target=meanwhile)
    for piece in host.generate(
        asked.prompt, chat=True, temperature=0, max_new_tokens=asked.new_tokens
    ):
        pieces.append(piece)
        times.append(time.perf_counter())
        if len(pieces) == _PIECES_BEFORE and meanwhile is not None:
            other.start()
    if meanwhile is not None:
        other.join()
    gaps = [after - before for before, after in pairwise(times)]
    return _Heard(text="".join(pieces), longest_gap_s=max(gaps))


def _first_token_s(host: Any) -> float:
    """Time the first token after a prompt so short that the adapter is most of what is read."""
    return _timed(lambda: list(host.generate("Once", chat=False, temperature=0, max_new_tokens=1)))


def _timed(do: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    do(*arguments)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
