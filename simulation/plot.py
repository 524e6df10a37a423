"""Learning curves as a picture: held-out loss over the bytes that devices sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edge_sdk.errors import ConfigError

FORMATS = (".svg", ".png", ".pdf")
_MEGA = 1e6
_COLOURS = 10  # until they come again
_WIDE = 3.0  # times the least loss: then steps are ratios

Curve = Sequence[tuple[int, float]]
"""Of one run, after every look at what is held out: bytes sent by then, and the loss."""


def check_plot(path: Path) -> None:
    """Check before a long run that its picture can be drawn.

    Raises:
        ConfigError: matplotlib is not there, or the name says no format that is known.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path} must end in one of {' '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("a picture needs matplotlib: pip install 'edge-sdk[plots]'") from None


def plot_curves(variants: Mapping[str, Sequence[Curve]], title: str, path: Path) -> None:
    """Draw a line for each variant, the mean of its seeds, and a band from least to most.

    Args:
        variants: The curves of all seeds, by the variant's name.
        title: Above it.
        path: File; its suffix says the format. The same curves give the same SVG.

    Raises:
        ConfigError: As :func:`check_plot`; or a run was never looked at.
    """
    check_plot(path)
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = title
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for position, (variant, seeds) in enumerate(variants.items()):
        looks = min(map(len, seeds))
        if not looks:
            raise ConfigError(f"{variant}: a run has no held-out loss, so there is no curve")
        curves = np.array([curve[:looks] for curve in seeds])  # (seeds, looks, 2)
        sent, losses = curves[..., 0].mean(axis=0) / _MEGA, curves[..., 1]
        style = "-" if position < _COLOURS else "--"
        (line,) = axes.plot(sent, losses.mean(axis=0), style, marker=".", label=variant)
        axes.fill_between(
            sent, losses.min(axis=0), losses.max(axis=0), alpha=0.15, color=line.get_color()
        )
    axes.set(xlabel="MB sent by all devices", ylabel="held-out loss", title=title)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _plain(value: float, _position: float | None) -> str:
    """Label 1, 2, 3 and 5 times a power of ten, without an exponent."""
    return f"{value:g}" if f"{value:e}"[0] in "1235" else ""
