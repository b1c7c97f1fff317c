"""The one look of all figures: print sizes, quiet axes, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any, Literal, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN_IN = 3.4
"""Width of one column of a two-column page, inches."""
PAGE_IN = 7.0
"""Width of the whole page, inches."""

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
RED, INK, MUTED, HAIRLINE = "#C1272D", "#1F2733", "#66707F", "#D9DEE6"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Line colours in order (Okabe and Ito)."""
DASHES = (
    "solid",
    (0, (5, 1.6)),
    (0, (1.2, 1.4)),
    (0, (5, 1.4, 1.2, 1.4)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
"""Line styles in order, so that curves differ in print without colour too."""

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "text.color": INK,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 7.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": HAIRLINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "white",
    "grid.color": "#EBEEF3",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.color": HAIRLINE,
    "ytick.color": HAIRLINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "ytick.minor.size": 0.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "figure.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "icre",
}

Arguments = ParamSpec("Arguments")


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Run a figure function with the house style; matplotlib's own settings are as before afterwards."""

    @functools.wraps(draw)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


def panels(count: int, *, width_in: float, height_in: float) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels side by side."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, [figure.add_subplot(1, count, index + 1) for index in range(count)]


def say(axes: Axes, message: str) -> None:
    """Put a message in place of data that are not there."""
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set(xticks=[], yticks=[])


def plain_legend(axes: Axes) -> None:
    """A legend that takes labels as they are: a dollar sign in a name is no formula."""
    for text in axes.legend().get_texts():
        text.set_parse_math(False)


def encode(figure: Figure, kind: Literal["svg", "webp"]) -> bytes:
    """The figure as the content of a file; the same figure gives the same bytes. Text in SVG is outlines."""
    sink = io.BytesIO()
    with matplotlib.rc_context(_RC):
        if kind == "svg":
            figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
        else:
            figure.savefig(sink, format="webp", dpi=220, pil_kwargs={"quality": 88})
    return sink.getvalue()


def shortened(name: str, limit: int) -> str:
    """``name``, or its beginning and an ellipsis, in ``limit`` characters at most."""
    return name if len(name) <= limit else name[: limit - 1] + "…"
