"""Ranked retrieval lists: a query and its nearest gallery images, framed as right or wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from icre.figures import style

GAP, QUERY_GAP, CAPTION, HEADER = 0.14, 0.45, 0.7, 0.3
"""Gap between images, gap beside the query, height of a caption and of the header; in image widths."""
RIGHT, WRONG = "#00805E", style.RED
"""Dark enough to be legible as text."""


@dataclass(frozen=True, eq=False)
class RankedImage:
    """An image in a ranked list."""

    image: NDArray[np.uint8] | None
    """(H, W, 3); None draws a grey field with the path."""
    identity: str
    camera: str
    path: str
    distance: float | None = None
    """Distance to the query; None for the query itself."""
    match: bool | None = None
    """Whether it shows the query's person; None for the query itself."""


@dataclass(frozen=True, eq=False)
class RankedList:
    """A query and its gallery images, nearest first."""

    query: RankedImage
    gallery: Sequence[RankedImage]


@style.styled
def ranked_list(lists: Sequence[RankedList]) -> Figure:
    """One row per query: the query left, its gallery right, nearest first.

    Right images have a solid green frame and a check mark, wrong ones a dashed red frame and a cross, with distance
    and camera below. Images are drawn with the shape of the first one.
    """
    columns = max((len(entry.gallery) for entry in lists), default=0)
    ratio = _aspect(lists)
    row_height = ratio + CAPTION
    width = 1 + QUERY_GAP + columns * (1 + GAP)
    height = HEADER + len(lists) * row_height
    figure = Figure(figsize=(style.PAGE_IN, style.PAGE_IN * height / width))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    _header(axes, columns)
    for row, entry in enumerate(lists):
        bottom = -(HEADER + row * row_height + ratio)
        _place(axes, entry.query, 0.0, bottom, ratio)
        for column, shown in enumerate(entry.gallery):
            _place(axes, shown, _left(column), bottom, ratio)
    axes.set(xlim=(-GAP / 2, width - GAP / 2), ylim=(-height, 0.0))
    axes.set_axis_off()
    return figure


def _left(column: int) -> float:
    return 1 + QUERY_GAP + column * (1 + GAP)


def _aspect(lists: Sequence[RankedList]) -> float:
    for entry in lists:
        for shown in (entry.query, *entry.gallery):
            if shown.image is not None:
                return float(shown.image.shape[0] / shown.image.shape[1])
    return 2.0


def _header(axes: Axes, columns: int) -> None:
    names = [(0.0, "query"), *((_left(column), str(column + 1)) for column in range(columns))]
    for left, name in names:
        axes.text(left + 0.5, -HEADER / 2, name, ha="center", va="center", weight="bold", color=style.MUTED)


def _place(axes: Axes, shown: RankedImage, left: float, bottom: float, ratio: float) -> None:
    if shown.image is not None:
        axes.imshow(shown.image, extent=(left, left + 1, bottom, bottom + ratio), aspect="auto", zorder=1)
    else:
        axes.add_artist(Rectangle((left, bottom), 1, ratio, facecolor="#E4E7EC", edgecolor="none", zorder=1))
        _write(axes, left + 0.5, bottom + ratio / 2, _broken(shown.path), size=4.5, va="center")
    colour = {None: style.INK, True: RIGHT, False: WRONG}[shown.match]
    dashes = (0, (3, 1.2)) if shown.match is False else "solid"
    frame = Rectangle((left, bottom), 1, ratio, fill=False, edgecolor=colour, linewidth=1.8, linestyle=dashes)
    frame.set_zorder(2)
    axes.add_artist(frame)
    first, second = _caption(shown)
    middle = left + 0.5
    _write(axes, middle, bottom - 0.1, first, size=6.5, color=colour)
    _write(axes, middle, bottom - 0.31, second, size=5.5)


def _write(
    axes: Axes, x: float, y: float, text: str, *, size: float, color: str = style.MUTED, va: str = "top"
) -> None:
    axes.text(x, y, text, ha="center", va=va, size=size, color=color, parse_math=False)


def _broken(path: str) -> str:
    """A path wrapped over several lines, preferably after slashes."""
    parts = path.replace("/", "/\n").split("\n")
    return "\n".join(line for part in parts for line in textwrap.wrap(part, 13))


def _caption(shown: RankedImage) -> tuple[str, str]:
    camera = f"cam {style.shortened(shown.camera, 9)}"
    if shown.distance is None:
        return style.shortened(shown.identity, 12), camera
    return f"{'✓' if shown.match else '✗'} {shown.distance:.3f}", camera
