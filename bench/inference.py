"""Inference with ONNX Runtime: does it say what torch says, how fast, and in how much memory.

Baseline: transformers on this CPU with a cache, the adapter merged into the weights (its fastest
way), in bf16 and in fp32; the faster of the two counts. Ours keeps the adapter apart, to be swapped
at will. Every engine runs in a process of its own with the same threads; the engines take turns,
speed is the fastest of a few texts in a process, and a ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import msgspec
from rich.console import Console
from rich.table import Table

from bench.fresh_process import measure_fresh
from bench.inference_adapter import Lesson, write_heldout
from bench.inference_answers import Accuracy, Swapped, Swaps, Tokens
from bench.inference_once import Engine, Spoken, Talk
from bench.report import Claim, publish
from demo.smollm2 import smollm2_folder
from demo.trec import questions, record
from edge_sdk.device import probe
from edge_sdk.inference.export import export_once
from edge_sdk.inference.text import TextTokenizer
from edge_sdk.inference.weight_format import WeightFormat
from edge_sdk.text.tokenization import prompt_ids

LIBRARIES = ("onnxruntime", "torch", "transformers", "peft", "bitsandbytes")
BASELINES: tuple[Engine, ...] = ("transformers bf16", "transformers fp32")
OURS: Engine = "nf4"
WEIGHED: tuple[WeightFormat, ...] = ("nf4", "int4")
PROMPTS, TOKENS_PER_PROMPT = 50, 32
NEW_TOKENS, REPETITIONS, TURNS = 96, 4, 3
SWAP_RANKS, SWAPS, SWAP_TOKENS = (8, 64), 12, 48
LOCAL_STEPS = 200

MOST_ACCURACY_LOSS = 0.01
MOST_SWAP_S = 0.05
LEAST_SPEED, MOST_MEMORY = 3.0, 0.5

_QUESTION = "Write a short story about a boy who finds a strange machine in the forest."

Turns = dict[Engine, list[Spoken]]


def main() -> int:
    """Measure, print the table and the claims."""
    options = _options()
    console = Console(width=160)
    threads, model = options.threads or probe().cores, smollm2_folder()
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    console.print(f"{model.name}; {threads} threads; {versions}")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        adapter = options.adapter or _trained(model, root, threads)
        turns = _turns(model, adapter, threads)
        _print(console, turns)
        claims = [
            *_speed_claims(turns),
            _parity_claim(model, adapter, threads),
            *_accuracy_claims(model, adapter, options.heldout, root, threads),
            *_swap_claims(model, root, threads),
        ]
    rows = [
        {"engine": engine, "turn": turn, **_numbers(spoken)}
        for engine, all_spoken in turns.items()
        for turn, spoken in enumerate(all_spoken)
    ]
    return publish(console, claims, rows, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--adapter", type=Path, help="PEFT folder; default: trained first")
    parser.add_argument("--heldout", type=Path, help="JSONL the adapter did not learn")
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    return parser.parse_args()


def _trained(model: Path, root: Path, threads: int) -> Path:
    adapter = root / "adapter"
    _learn(model, adapter, root, 16, LOCAL_STEPS, threads)
    return adapter


def _learn(model: Path, adapter: Path, root: Path, r: int, local_steps: int, threads: int) -> None:
    lesson = Lesson(
        model=str(model),
        adapter=str(adapter),
        examples=str(root / "examples.jsonl"),
        r=r,
        local_steps=local_steps,
        threads=threads,
    )
    measure_fresh("bench.inference_adapter", lesson, list[float], threads)


def _turns(model: Path, adapter: Path, threads: int) -> Turns:
    """Let the engines take turns; exports are made before, as they are made once."""
    formats = get_args(WeightFormat)
    for weight_format in formats:
        export_once(model, weight_format, "CAUSAL_LM")
    prompt = prompt_ids(TextTokenizer(model), _QUESTION, chat=True)
    turns: Turns = {engine: [] for engine in get_args(Engine)}
    for _ in range(TURNS):
        for engine, done in turns.items():
            talk = Talk(
                engine=engine,
                model=str(model),
                adapter=str(adapter),
                prompt=prompt,
                new_tokens=NEW_TOKENS,
                repetitions=REPETITIONS,
                threads=threads,
            )
            done.append(measure_fresh("bench.inference_once", talk, Spoken, threads))
    return turns


def _print(console: Console, turns: Turns) -> None:
    table = Table("engine", "ready s", "first token ms", "tokens/s", "memory MB", "peak MB")
    for engine, spoken in turns.items():
        best = max(spoken, key=lambda x: x.tokens_per_s)
        table.add_row(
            engine,
            f"{min(x.open_s for x in spoken):.2f}",
            f"{min(x.first_token_s for x in spoken) * 1e3:.0f}",
            f"{best.tokens_per_s:.1f}",
            f"{_rss(spoken) / 1e6:.0f}",
            f"{max(x.peak_bytes for x in spoken) / 1e6:.0f}",
        )
    console.print(table)


def _speed_claims(turns: Turns) -> Iterator[Claim]:
    rival = max(BASELINES, key=lambda x: statistics.median(y.tokens_per_s for y in turns[x]))
    pairs = list(zip(turns[OURS], turns[rival], strict=True))
    speed = statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in pairs)
    memory = _rss(turns[OURS]) / _rss(turns[rival])
    yield Claim(
        claim=f"{OURS} / {rival}: tokens per second",
        target=f">= {LEAST_SPEED:g}",
        measured=speed,
        holds=speed >= LEAST_SPEED,
    )
    yield Claim(
        claim=f"{OURS} / {rival}: resident memory while generating",
        target=f"<= {MOST_MEMORY:g}",
        measured=memory,
        holds=memory <= MOST_MEMORY,
    )


def _rss(spoken: Sequence[Spoken]) -> float:
    return statistics.median(x.rss_bytes for x in spoken)


def _parity_claim(model: Path, adapter: Path, threads: int) -> Claim:
    tokenizer = TextTokenizer(model)
    texts = [record(x)["prompt"] for x in questions()[:PROMPTS]]
    prompts = [prompt_ids(tokenizer, x, chat=i % 2 == 1) for i, x in enumerate(texts)]
    found: list[list[list[int]]] = []
    for engine in ("fp32", "transformers fp32"):
        asked = Tokens(
            engine=engine,
            model=str(model),
            adapter=str(adapter),
            prompts=prompts,
            new_tokens=TOKENS_PER_PROMPT,
            threads=threads,
        )
        found.append(_answer(asked, list[list[int]], threads))
    same = sum(ours == theirs for ours, theirs in zip(*found, strict=True))
    return Claim(
        claim=f"fp32: prompts of {PROMPTS} whose {TOKENS_PER_PROMPT} tokens equal torch's",
        target=f"= {PROMPTS}",
        measured=same,
        holds=same == PROMPTS,
    )


def _accuracy_claims(
    model: Path, adapter: Path, heldout: Path | None, root: Path, threads: int
) -> Iterator[Claim]:
    if heldout is None:
        heldout = root / "heldout.jsonl"
        write_heldout(heldout)
    flags = {"model": model, "adapter": adapter, "heldout": heldout, "threads": threads}
    options = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "demo.heldout", *options], capture_output=True, check=True
    )
    theirs = msgspec.json.decode(done.stdout)["accuracy"]
    for weight_format in WEIGHED:
        asked = Accuracy(
            weight_format=weight_format,
            model=str(model),
            adapter=str(adapter),
            heldout=str(heldout),
            threads=threads,
        )
        ours = _answer(asked, float, threads)
        yield Claim(
            claim=f"{weight_format}: accuracy {ours:.3f}, less that of torch in NF4 {theirs:.3f}",
            target=f">= -{MOST_ACCURACY_LOSS:g}",
            measured=ours - theirs,
            holds=ours >= theirs - MOST_ACCURACY_LOSS - 1e-9,
        )


def _swap_claims(model: Path, root: Path, threads: int) -> Iterator[Claim]:
    versions = [root / f"rank-{r}" for r in SWAP_RANKS]
    for r, folder in zip(SWAP_RANKS, versions, strict=True):
        _learn(model, folder, root, r, 0, threads)
    asked = Swaps(
        model=str(model),
        versions=[str(folder) for folder in versions],
        served=str(root / "served"),
        prompt=_QUESTION,
        new_tokens=SWAP_TOKENS,
        swaps=SWAPS,
    )
    found = _answer(asked, Swapped, threads)
    yield _swap_claim(
        f"ranks {SWAP_RANKS}, slowest swap in a text, s until the next would use it",
        max(found.during_s),
    )
    yield _swap_claim("slowest swap before a text, s its first token is later", max(found.before_s))
    yield _swap_claim(
        "longest wait inside a text with a swap, s beyond the longest without",
        max(found.gaps_s) - max(found.usual_gaps_s),
    )
    yield Claim(
        claim="the texts being made meanwhile are those made without swaps (1: yes)",
        target="= 1",
        measured=float(found.is_undisturbed),
        holds=found.is_undisturbed,
    )


def _swap_claim(claim: str, seconds: float) -> Claim:
    return Claim(
        claim=claim,
        target=f"<= {MOST_SWAP_S:g}",
        measured=seconds,
        holds=seconds <= MOST_SWAP_S,
    )


def _answer(asked: Tokens | Accuracy | Swaps, kind: type[Any], threads: int) -> Any:
    return measure_fresh("bench.inference_answers", asked, kind, threads)


def _numbers(spoken: Spoken) -> Mapping[str, Any]:
    return {name: value for name, value in asdict(spoken).items() if name != "tokens"}


if __name__ == "__main__":
    sys.exit(main())
