"""Damaged bytes for everything that decodes what the other side sent: only typed errors may come.

A child process under a memory limit mutates valid tensor files, messages and signed statements
and decodes them. The input it works on is in a file before it is decoded, so that not even a
crash of the interpreter loses it; the seed repeats the run.
"""

from __future__ import annotations

import argparse
import collections
import json
import mmap
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench.mutations import mutate
from bench.report import Claim, publish
from bench.wire_targets import Target, all_targets
from edge_sdk.errors import EdgeError

MOST_GROWTH_BYTES = 64 << 20
MOST_SECONDS = 1.0
LEAST_KINDS = 6
_HEADROOM_BYTES = 512 << 20
_WARM_UP_INPUTS = 2000
_MOST_INPUT_BYTES = 1 << 20
_PATIENCE_S = 120.0


@dataclass(kw_only=True)
class Tally:
    """What became of the inputs of one decoder.

    Attributes:
        inputs: Inputs it got.
        accepted: Those it decoded.
        kinds: How often each typed error came, by code.
        slowest_s: Processor time of the slowest input.
    """

    inputs: int = 0
    accepted: int = 0
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest_s: float = 0.0


class Untyped(Exception):
    """A decoder raised what is not an error of :mod:`edge_sdk.errors`."""


def feed(target: Target, body: bytes, tally: Tally) -> None:
    """Decode one input and count what comes of it.

    Raises:
        Untyped: Neither a value nor a typed error.
    """
    tally.inputs += 1
    started = time.thread_time()
    try:
        target.decode(body)
        tally.accepted += 1
    except EdgeError as error:
        tally.kinds[error.code] += 1
    except Exception as error:
        raise Untyped(f"{target.name}: {type(error).__name__}: {str(error)[:200]}") from error
    tally.slowest_s = max(tally.slowest_s, time.thread_time() - started)


def inputs(targets: Sequence[Target], seed: int) -> Iterator[tuple[Target, bytes]]:
    """Yield decoders in turn, each with damaged bytes of its own; without end."""
    rng = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    while True:
        for target in targets:
            yield target, mutate(rng.choice(target.samples), rng)


def main() -> int:
    """Fuzz in a child process, print what it found, and say whether the claims hold."""
    chosen = _parse()
    if chosen.child:
        print(json.dumps(_fuzz(chosen.seed, chosen.minutes * 60, chosen.input)))
        return 0
    console = Console()
    found = _run_child(chosen)
    console.print(_table(found["rows"]))
    return publish(console, _claims(found), found["rows"], chosen.json)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="repeats a run (default: 0)")
    parser.add_argument(
        "--input",
        type=Path,
        default=Path("wire_fuzz.input"),
        metavar="FILE",
        help="where the input that broke something is left (default: wire_fuzz.input)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_child(chosen: argparse.Namespace) -> dict[str, Any]:
    words = ["--seed", str(chosen.seed), "--minutes", str(chosen.minutes)]
    words += ["--input", str(chosen.input), "--child"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.wire_fuzz", *words],
        capture_output=True,
        text=True,
        timeout=chosen.minutes * 60 + _PATIENCE_S,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(
            f"seed {chosen.seed}: the decoding process ended with status {done.returncode}; its "
            f"input is in {chosen.input}\n{done.stderr[-2000:]}"
        )
    chosen.input.unlink()
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _fuzz(seed: int, seconds: float, path: Path) -> dict[str, Any]:
    """Decode damaged bytes until the time is over; ends with an exception at the first finding."""
    targets = all_targets()
    tallies = {target.name: Tally() for target in targets}
    stream = inputs(targets, seed)
    for _ in range(_WARM_UP_INPUTS):
        target, body = next(stream)
        feed(target, body, Tally())
    process = psutil.Process()
    limit_bytes = process.memory_info().vms + _HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    base_bytes = _peak_bytes()
    started = time.monotonic()
    with _kept(path) as keep:
        while (spent_s := time.monotonic() - started) < seconds:
            for _ in targets:
                target, body = next(stream)
                keep(target.name, body)
                feed(target, body, tallies[target.name])
    rows = [{"target": name, **vars(tally)} for name, tally in tallies.items()]
    growth_bytes = _peak_bytes() - base_bytes
    return {"seconds": spent_s, "base_bytes": base_bytes, "growth_bytes": growth_bytes} | {
        "rows": rows
    }


@contextmanager
def _kept(path: Path) -> Iterator[Any]:
    """Keep the newest input in a mapped file, which outlives even a killed process."""
    path.write_bytes(bytes(_MOST_INPUT_BYTES))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as area:

        def keep(name: str, body: bytes) -> None:
            record = f"{name} {len(body)}\n".encode() + body
            area[: len(record)] = record

        yield keep


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("decoder", "inputs", "accepted", "slowest ms", "typed errors")
    for row in rows:
        kinds = ", ".join(f"{code} {count}" for code, count in sorted(row["kinds"].items()))
        slowest = f"{1000 * row['slowest_s']:.2f}"
        table.add_row(row["target"], str(row["inputs"]), str(row["accepted"]), slowest, kinds)
    return table


def _claims(found: dict[str, Any]) -> list[Claim]:
    rows = found["rows"]
    tried = sum(row["inputs"] for row in rows)
    kinds = {code for row in rows for code in row["kinds"]}
    slowest_s = max(row["slowest_s"] for row in rows)
    growth_mib = found["growth_bytes"] / 2**20
    return [
        Claim(
            claim="inputs that ended in a crash or an error without a type",
            target=f"0 of {tried} ({tried / found['seconds']:.0f}/s)",
            measured=0,
            holds=True,
        ),
        Claim(
            claim="memory above the first 2000 inputs at its peak, MiB",
            target=f"<= {MOST_GROWTH_BYTES >> 20}",
            measured=growth_mib,
            holds=found["growth_bytes"] <= MOST_GROWTH_BYTES,
        ),
        Claim(
            claim="the slowest input, s of processor time",
            target=f"<= {MOST_SECONDS}",
            measured=slowest_s,
            holds=slowest_s <= MOST_SECONDS,
        ),
        Claim(
            claim="kinds of typed errors reached",
            target=f">= {LEAST_KINDS}",
            measured=len(kinds),
            holds=len(kinds) >= LEAST_KINDS,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
