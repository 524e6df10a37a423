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
    """Draw a thick line for each variant, the mean of its seeds, and a thin one for each seed.

    The mean ends with the last look that all seeds have.

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
        style = "-" if position < _COLOURS else "--"
        mean = np.mean([curve[:looks] for curve in seeds], axis=0)  # (looks, 2)
        (line,) = axes.plot(mean[:, 0] / _MEGA, mean[:, 1], style, marker=".", label=variant)
        for curve in seeds:
            sent, losses = np.array(curve).T
            axes.plot(sent / _MEGA, losses, style, color=line.get_color(), lw=0.7, alpha=0.4)
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
