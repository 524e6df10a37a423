"""Compare federated LoRA methods; without words, run one small row again and print the claims.

``prepare`` writes the data under ``.study``. ``run TABLE`` runs what is missing of a table, one of
the configurations in ``bench/study/tables``, and writes its results into ``bench/study/results``.
``show`` prints all tables that were run; ``write`` puts them into ``docs/results.md`` and draws
its pictures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from bench.report import Claim, publish
from bench.study.claims import study_claims
from bench.study.data import prepare
from bench.study.plots import PLOTS, plot_table
from bench.study.show import DOCUMENT, filled, print_tables
from bench.study.tables import as_row, config_path, read_table, results_path, run_table, table_names
from simulation.config import read_runs
from simulation.run import run_simulation

SMALL = ("minilm-ablations", "int8-0")
"""Table and run that are run again."""

_DO = ("prepare", "run", "show", "write")
_PRECISION = 3  # decimals that are printed


def main() -> int:
    """Do what was asked."""
    options = _options()
    console = Console(width=140)
    if options.do == "show":
        print_tables(console, _done(table_names()))
        return 0
    if options.do == "write":
        DOCUMENT.write_text(filled(DOCUMENT.read_text("utf-8")), encoding="utf-8")
        for name in _done(PLOTS):
            console.print(plot_table(name))
        return 0
    prepare()
    if options.do == "prepare":
        return 0
    if options.do == "run":
        for table in options.tables:
            console.print(f"running {table}")
            run_table(table, options.jobs)
        return 0
    claims = [_again(), *study_claims()]
    return publish(console, claims, [], options.json)


def _done(names: Iterable[str]) -> list[str]:
    return [x for x in names if results_path(x).exists()]


def _again() -> Claim:
    """Run the small row again and compare it with the stored one."""
    table, run = SMALL
    config = read_runs(config_path(table))[run]
    with tempfile.TemporaryDirectory() as scratch:
        found = as_row(run, run_simulation(config, Path(scratch) / f"{run}.json"))
    (stored,) = [
        row for row in read_table(table) if (row.variant, row.seed) == (found.variant, found.seed)
    ]
    away = max(
        abs(here.loss - there.loss) for here, there in zip(found.curve, stored.curve, strict=True)
    )
    return Claim(
        claim=f"{table} {run} run again: largest difference of a held-out loss from the stored one",
        target=f"< {0.5 * 10**-_PRECISION}: the printed precision",
        measured=away,
        holds=away < 0.5 * 10**-_PRECISION,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "do", nargs="?", choices=("prepare", "run", "show", "write"), help="default: check"
    )
    parser.add_argument("tables", nargs="*", choices=[*table_names(), []], help="of run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each with one thread")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
