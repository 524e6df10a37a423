"""One training step: how fast, in how much memory, and against what a user would pick instead.

Baselines: ``transformers`` + ``peft`` + ``bitsandbytes`` as their manuals use them (textbook
QLoRA), PEFT on an unquantized base in bf16 and in fp32 without checkpointing, and PEFT on a 4-bit
base that was not prepared. All train the same ranks from the same values on the same tokens with
the same optimizer and threads. Every run is a process of its own; the methods take turns, so that
a disturbance of the machine meets all of them. Speed is that of the shortest step, a ratio the
median over the turns, and memory is counted above that of the imported libraries.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

from rich.console import Console

from bench.report import json_path, publish
from bench.train_claims import speed_claims, tight_claims
from bench.train_methods import OURS, OURS_TIGHT, QWEN, SMOLLM2, baselines
from bench.train_ranks import json_rows, measure_ranks, rank_claims
from bench.train_speed import Plan, compare, faster_products
from bench.train_tables import print_tables
from edge_sdk.device import probe

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
REPETITIONS = 3
STEPS = 4


def main() -> int:
    """Measure, print the tables and the claims."""
    path = json_path(__doc__)
    console = Console(width=160)
    plan = Plan(repetitions=REPETITIONS, steps=STEPS, threads=probe().cores)
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    console.print(f"{plan.threads} threads; {versions}")
    others = baselines(faster_products(console, SMOLLM2, plan))
    small = compare(console, SMOLLM2, (*others, *OURS), plan)
    print_tables(console, small)
    large = compare(console, QWEN, (*others, *OURS, OURS_TIGHT), plan)
    print_tables(console, large)
    ranks = measure_ranks(console, plan)
    claims = [
        *speed_claims(small),
        *speed_claims(large),
        *tight_claims(large),
        *rank_claims(ranks),
    ]
    return publish(console, claims, [*small.rows(), *large.rows(), *json_rows(ranks)], path)


if __name__ == "__main__":
    sys.exit(main())
