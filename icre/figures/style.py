"""House style of all figures: print sizes, plain axes, colours suitable for colour-blind readers."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

COLUMN_IN = 3.4
"""Width of one column of a two-column page, inches."""
PAGE_IN = 7.0
"""Width of the whole page, inches."""
LINE_IN = 0.15
"""Height of a line of a legend, inches."""
LEGEND_SPACING = 1.2
"""Space between the columns of a legend, in font sizes."""

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
"""Line styles in order, to distinguish curves in print without colour."""

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
    # Embedded TrueType fonts: accepted by publishers, with searchable text.
    "pdf.fonttype": 42,
}
PRINT_DPI = 300
"""Resolution of raster content in printed figures."""

Kind = Literal["svg", "webp", "png", "pdf"]

Arguments = ParamSpec("Arguments")


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Run a figure function with the house style; matplotlib's settings are restored afterwards."""

    @functools.wraps(draw)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


def panels(count: int, *, width_in: float, height_in: float, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels side by side, at most ``columns`` in a row; ``height_in`` is per row."""
    columns = min(count, columns or count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width_in, rows * height_in), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def curve(index: int) -> dict[str, Any]:
    """Colour and dashes of the curve with this index: 36 different pairs, the first six differing in both."""
    turn = index // len(CYCLE)
    return {"color": CYCLE[index % len(CYCLE)], "linestyle": DASHES[(index + turn) % len(DASHES)]}


def say(axes: Axes, message: str) -> None:
    """Show a message in place of missing data."""
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set(xticks=[], yticks=[])


def title(axes: Axes, name: str, *, beside: int = 1, **options: Any) -> None:
    """Set a panel's title, without math parsing, cut to the width of one of ``beside`` panels on a page."""
    room = PAGE_IN / beside - 0.4
    text = fitted(name, room, size=_RC["axes.titlesize"], weight=_RC["axes.titleweight"])
    axes.set_title(text, parse_math=False, **options)


def figure_legend(figure: Figure, handles: Sequence[Artist], *, handlelength: float) -> None:
    """One legend under all panels of a page, in as many columns as fit, in row order; long labels are cut."""
    size = _RC["legend.fontsize"]
    labels = [fitted(str(handle.get_label()), PAGE_IN - 1, size=size) for handle in handles]
    # The key, the space between key and label, and the space to the next column.
    widest_in = size / 72 * (handlelength + 0.8 + LEGEND_SPACING) + max(text_width_in(one, size=size) for one in labels)
    columns = min(len(labels), max(1, int(PAGE_IN / widest_in)))
    rows = -(-len(labels) // columns)
    # matplotlib fills column by column.
    order = [place for column in range(columns) for place in range(column, len(labels), columns)]
    legend = figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside lower center",
        ncols=columns,
        handlelength=handlelength,
        columnspacing=LEGEND_SPACING,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    # Grow the figure so that the panels keep their height.
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + LINE_IN * (rows - 1))


def plain_legend(axes: Axes) -> None:
    """Disable math parsing in a legend: a dollar sign in a name is not a formula."""
    for text in axes.legend().get_texts():
        text.set_parse_math(False)


def encode(figure: Figure, kind: Kind) -> bytes:
    """File content of the figure; equal figures give equal bytes.

    ``svg`` (text as outlines) and ``webp`` are for screens. ``png``, at 300 dpi, and ``pdf``, with embedded fonts, are
    for print.
    """
    sink = io.BytesIO()
    with matplotlib.rc_context(_RC):
        match kind:
            case "svg":
                figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
            case "webp":
                figure.savefig(sink, format="webp", dpi=220, pil_kwargs={"quality": 88})
            case "png":
                figure.savefig(sink, format="png", dpi=PRINT_DPI, metadata={"Software": None})
            case "pdf":
                nothing = {"Creator": None, "Producer": None, "CreationDate": None}
                figure.savefig(sink, format="pdf", dpi=PRINT_DPI, metadata=nothing)
    return sink.getvalue()


def text_width_in(text: str, *, size: float, weight: str = "normal") -> float:
    """Printed width of a line of text, inches."""
    font = FontProperties(family=_RC["font.family"], size=size, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def fitted(text: str, width_in: float, *, size: float, weight: str = "normal") -> str:
    """``text``, truncated with an ellipsis to fit into ``width_in`` inches."""
    if text_width_in(text, size=size, weight=weight) <= width_in:
        return text
    kept = len(text)
    while kept and text_width_in(text[:kept] + "…", size=size, weight=weight) > width_in:
        kept -= 1
    return text[:kept] + "…"


def shortened(name: str, limit: int) -> str:
    """``name``, truncated with an ellipsis to at most ``limit`` characters."""
    return name if len(name) <= limit else name[: limit - 1] + "…"
