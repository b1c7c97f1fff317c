"""Contact sheet of a data set: images of its identities in both modalities, at the stored resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from icre.figures import style

DPI = 150
"""Resolution of the figure, at which an image pixel is a whole number of pixels of the file per side."""
SMALLEST_TILE = 80
"""Minimum image width, to which narrower images are enlarged to fit their captions; pixels."""
MARGIN, LABEL, GAP, MIDDLE, CAPTION, TITLE, HEADER = 24, 132, 8, 48, 38, 44, 36
"""Outer margin, width of an identity's name, gap between images, gap between modalities, height of a caption, of the
title and of the column headers; pixels."""


@dataclass(frozen=True, eq=False)
class Tile:
    """One image of the sheet."""

    image: NDArray[np.uint8]
    """(H, W, 3), the same shape for all images of a sheet."""
    camera: str


@dataclass(frozen=True, eq=False)
class ContactRow:
    """Images of one identity."""

    identity: str
    split: str
    visible: Sequence[Tile]
    infrared: Sequence[Tile]


@style.styled
def contact_sheet(rows: Sequence[ContactRow], *, title: str) -> Figure:
    """One row for each identity (at least one): visible images left, infrared ones right, cameras under them.

    Saved with ``dpi="figure"``, images keep their pixels; those of small images are repeated a whole number of times.
    """
    height, width = rows[0].visible[0].image.shape[:2]
    zoom = -(-SMALLEST_TILE // width)
    tile, row_height = (width * zoom, height * zoom), height * zoom + CAPTION
    columns = [max(len(row.visible) for row in rows), max(len(row.infrared) for row in rows)]
    lefts = (MARGIN + LABEL, MARGIN + LABEL + columns[0] * (tile[0] + GAP) - GAP + MIDDLE)
    right = lefts[1] + columns[1] * (tile[0] + GAP) - GAP + MARGIN
    top = MARGIN + TITLE + HEADER
    figure, axes = _canvas(right, top + len(rows) * row_height + MARGIN)
    _write(axes, MARGIN, MARGIN, title, size=9, weight="bold")
    for left, modality in zip(lefts, ("visible", "infrared"), strict=True):
        _write(axes, left, MARGIN + TITLE, modality, size=8, weight="bold", color=style.MUTED)
    for number, row in enumerate(rows):
        y = top + number * row_height
        _write(axes, MARGIN, y, style.shortened(row.identity, 12), size=8, weight="bold")
        _write(axes, MARGIN, y + 24, row.split, size=7, color=style.MUTED)
        for left, tiles in zip(lefts, (row.visible, row.infrared), strict=True):
            for place, shown in enumerate(tiles):
                _place(axes, shown, left + place * (tile[0] + GAP), y, tile)
    return figure


def _canvas(width: int, height: int) -> tuple[Figure, Axes]:
    """A figure with one axes in pixels from the upper left corner."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def _place(axes: Axes, shown: Tile, left: int, top: int, size: tuple[int, int]) -> None:
    extent = (left, left + size[0], top + size[1], top)
    # Above the text: a wide name is covered by its neighbour.
    axes.imshow(shown.image, extent=extent, aspect="auto", interpolation="nearest", zorder=4)
    camera = style.shortened(f"cam {shown.camera}", (size[0] + GAP) // 9)
    _write(axes, left + size[0] / 2, top + size[1] + 4, camera, size=6.5, color=style.MUTED, ha="center")


def _write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    color: str = style.INK,
    weight: str = "normal",
    ha: str = "left",
) -> None:
    axes.text(x, y, text, ha=ha, va="top", size=size, color=color, weight=weight, parse_math=False)
