"""The study's curves as pictures: held-out loss over the bytes that devices sent."""

from __future__ import annotations

from pathlib import Path

from bench.study.tables import by_variant, read_table
from simulation.plot import plot_curves

FOLDER = Path("docs") / "plots"

PLOTS = {
    "smollm2-reviews": "Reviews by movie, SmolLM2-135M in NF4",
    "smollm2-commonsense": "Commonsense questions, SmolLM2-135M in NF4",
    "smollm2-speeches": "Speeches by president, SmolLM2-135M in NF4",
    "minilm-heavy": "Question types, MiniLM, heavy tail",
    "minilm-bytes": "Question types, MiniLM, one budget of bytes",
}
"""Tables that are drawn, and their titles."""


def plot_table(name: str) -> Path:
    """Draw the variants of a table, but for the look before the first round.

    Raises:
        ConfigError: matplotlib is not there; it comes with the extra ``plots``.
    """
    variants = {
        variant: [[(x.uplink_bytes, x.loss) for x in row.curve[1:]] for row in seeds]
        for variant, seeds in by_variant(read_table(name)).items()
    }
    path = FOLDER / f"{name}.svg"
    plot_curves(variants, PLOTS[name], path)
    return path
