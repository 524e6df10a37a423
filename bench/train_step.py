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
from dataclasses import replace
from importlib.metadata import version

from rich.console import Console

from bench import train_agreement, train_fine_tuning, train_loading, train_masked, train_ranks
from bench.report import json_path, publish
from bench.train_claims import speed_claims, tight_claims
from bench.train_methods import OURS, OURS_TIGHT, QWEN, SMOLLM2, baselines
from bench.train_speed import Plan, compare, faster_products
from bench.train_tables import print_tables
from edge_sdk.device import probe

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
REPETITIONS = 3
STEPS = 3
REPETITIONS_OF_LARGE, STEPS_OF_LARGE = 2, 2


def main() -> int:
    """Measure, print the tables and the claims."""
    path = json_path(__doc__)
    console = Console(width=160)
    plan = Plan(repetitions=REPETITIONS, steps=STEPS, threads=probe().cores)
    plan_of_large = replace(plan, repetitions=REPETITIONS_OF_LARGE, steps=STEPS_OF_LARGE)
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    console.print(f"{plan.threads} threads; {versions}")
    products = faster_products(console, SMOLLM2, plan)
    others = baselines(products)
    small = compare(console, SMOLLM2, (*others, *OURS), plan)
    print_tables(console, small)
    large = compare(console, QWEN, (*others, *OURS, OURS_TIGHT), plan_of_large)
    print_tables(console, large)
    ranks = train_ranks.measure_ranks(console, plan)
    tuning = train_fine_tuning.measure_fine_tuning(console, products, plan)
    agreement = train_agreement.measure_agreement(console, plan)
    loading = train_loading.measure_loading(console, plan)
    masked = train_masked.measure_masked(console, plan)
    claims = [
        *speed_claims(small),
        *speed_claims(large),
        *tight_claims(large),
        *train_fine_tuning.fine_tuning_claims(tuning),
        *train_agreement.agreement_claims(agreement),
        *train_loading.loading_claims(loading),
        *train_ranks.rank_claims(ranks),
        *train_masked.masked_claims(masked),
    ]
    rows = [
        *small.rows(),
        *large.rows(),
        *train_ranks.json_rows(ranks),
        *train_fine_tuning.json_rows(tuning),
        *train_agreement.json_rows(agreement),
        *train_loading.json_rows(loading),
        *train_masked.json_rows(masked),
    ]
    return publish(console, claims, rows, path)


if __name__ == "__main__":
    sys.exit(main())
