"""The study's curves as pictures: held-out loss over the bytes that devices sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.study.tables import Row, by_variant, read_table

FOLDER = Path("docs") / "plots"
_MEGA = 1e6
_COLOURS = 10  # until they come again
_WIDE = 3.0  # times the least loss: then steps are ratios


PLOTS = {
    "smollm2-reviews": "Reviews by movie, SmolLM2-135M in NF4",
    "smollm2-commonsense": "Commonsense questions, SmolLM2-135M in NF4",
    "smollm2-speeches": "Speeches by president, SmolLM2-135M in NF4",
    "minilm-heavy": "Question types, MiniLM, heavy tail",
    "minilm-bytes": "Question types, MiniLM, one budget of bytes",
}
"""Tables that are drawn, and their titles."""


def plot_table(name: str) -> Path:
    """Draw the variants of a table, a line for each, with all their seeds as a band.

    Raises:
        ImportError: matplotlib is not there; it comes with the extra ``plots``.
    """
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = name  # the same data give the same file
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for position, (variant, seeds) in enumerate(by_variant(read_table(name)).items()):
        sent, losses = _curves(seeds)
        style = "-" if position < _COLOURS else "--"
        (line,) = axes.plot(sent, losses.mean(axis=0), style, marker=".", label=variant)
        axes.fill_between(
            sent, losses.min(axis=0), losses.max(axis=0), alpha=0.15, color=line.get_color()
        )
    axes.set(xlabel="MB sent by all devices", ylabel="held-out loss", title=PLOTS[name])
    axes.set_xscale("log")
    low, high = axes.get_ylim()
    if high > _WIDE * low:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(_plain)
    axes.xaxis.set_minor_formatter(_plain)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(fontsize="small")
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


def _plain(value: float, _position: float | None) -> str:
    """Label 1, 2, 3 and 5 times a power of ten, without an exponent."""
    return f"{value:g}" if f"{value:e}"[0] in "1235" else ""


def _curves(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean megabytes of every look, and all seeds' losses there; not of the first look."""
    looks = min(len(row.curve) for row in rows)
    sent = [[x.uplink_bytes for x in row.curve[1:looks]] for row in rows]
    losses = [[x.loss for x in row.curve[1:looks]] for row in rows]
    return np.mean(sent, axis=0) / _MEGA, np.asarray(losses)
