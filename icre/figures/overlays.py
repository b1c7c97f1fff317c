"""Grid of images with overlaid maps, shared by the Grad-CAM, mask and attention figures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from icre.figures import style

SCALE = matplotlib.colormaps["inferno"]
"""Monotonic in lightness: readable for colour-blind readers and in greyscale print."""
VEIL = 0.6
"""Share of the map's colour in an overlay; the rest is the image in grey."""
LABEL_IN, GAP_IN, MIDDLE_IN, ABOVE_IN, BELOW_IN, BAR_IN = 1.02, 0.05, 0.2, 0.24, 0.14, 0.27
"""Width of row labels, gap between images, gap between modalities, height of the modality names, of a caption and of
the colour scale; inches."""
BAR_LENGTH_IN = 1.2
LARGEST_IN = (0.8, 2.0)
"""Maximum width and height of an image, inches; keeps a few images from filling the page."""

Map = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Overlay:
    """A column of the grid: an image, and below it the same image with each of its maps."""

    image: NDArray[np.uint8]
    """(H, W, 3)."""
    caption: str
    """Text below the image: its identity."""
    maps: Sequence[Map]
    """(h, w) each, one per row of the grid; of any size, stretched over the whole image."""
    notes: Sequence[str] = ()
    """Text below each map, or empty; all columns of a grid have notes, or none."""
    cell: tuple[int, int] | None = None
    """Cell to frame in the image: row and column in the grid of the first map."""


def blend(image: NDArray[np.uint8], values_hw: Map) -> NDArray[np.uint8]:
    """The grey image blended with the colours of ``values_hw`` in [0, 1]: (H, W, 3). A coarser map becomes blocks."""
    height, width = image.shape[:2]
    rows = np.arange(height) * values_hw.shape[0] // height
    columns = np.arange(width) * values_hw.shape[1] // width
    colours = SCALE(np.clip(values_hw, 0, 1)[rows][:, columns])[..., :3]
    grey = image @ np.array([0.299, 0.587, 0.114])
    return np.asarray(np.rint(VEIL * 255 * colours + (1 - VEIL) * grey[..., None]), dtype=np.uint8)


def overlay_grid(
    visible: Sequence[Overlay], infrared: Sequence[Overlay], *, rows: Sequence[str], scale: tuple[str, str]
) -> Figure:
    """Images in the first row, their maps below, one row per name; visible images left, infrared ones right.

    ``scale``: labels of the darkest and the lightest colour. Maps are drawn unscaled, in [0, 1].
    """
    columns = [*visible, *infrared]
    if not columns:
        figure, (axes,) = style.panels(1, width_in=style.PAGE_IN, height_in=1.0)
        style.say(axes, "no images to show")
        axes.spines[:].set_visible(False)
        return figure
    layout = _layout(len(visible), len(infrared), rows, columns[0])
    figure, axes = _canvas(style.PAGE_IN, layout.tops[-1] + BAR_IN)
    for first, group, name in ((0, visible, "visible"), (len(visible), infrared, "infrared")):
        if group:
            _write(axes, layout.lefts[first], ABOVE_IN / 2, name, size=8, weight="bold", va="center")
    for number, label in enumerate(("image", *rows)):
        top = layout.tops[number]
        _write(axes, LABEL_IN - 0.1, top + layout.tile[1] / 2, _wrapped(label), weight="bold", ha="right", va="center")
        for left, column in zip(layout.lefts, columns, strict=True):
            _place(axes, column, number, (left, top), layout.tile)
    _bar(axes, layout.lefts[0], layout.tops[-1] + 0.08, scale)
    return figure


class _Layout(NamedTuple):
    """Positions in inches from the upper left corner."""

    tile: tuple[float, float]
    """Width and height of every image."""
    lefts: list[float]
    """Left edge of each column."""
    tops: list[float]
    """Top edge of each row, and the bottom of the last row."""


def _layout(visible: int, infrared: int, rows: Sequence[str], first: Overlay) -> _Layout:
    ratio, count = first.image.shape[0] / first.image.shape[1], visible + infrared
    middle = MIDDLE_IN if visible and infrared else 0.0
    free = style.PAGE_IN - LABEL_IN - middle - GAP_IN * count
    width = min(free / count, LARGEST_IN[0], LARGEST_IN[1] / ratio)
    lefts = [LABEL_IN + i * (width + GAP_IN) + (middle if i >= visible else 0.0) for i in range(count)]
    tops = [ABOVE_IN]
    for number in range(1 + len(rows)):
        captioned = number == 0 or bool(first.notes)
        tops.append(tops[-1] + width * ratio + GAP_IN + (BELOW_IN if captioned else 0.0))
    return _Layout((width, width * ratio), lefts, tops)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one axes in inches from the upper left corner."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def _place(axes: Axes, column: Overlay, number: int, corner: tuple[float, float], tile: tuple[float, float]) -> None:
    """Draw the image of a column (``number`` 0), or the image with one of its maps."""
    x, y = corner
    picture = column.image if number == 0 else blend(column.image, column.maps[number - 1])
    axes.imshow(picture, extent=(x, x + tile[0], y + tile[1], y), aspect="auto", interpolation="nearest")
    note = column.caption if number == 0 else "".join(column.notes[number - 1 : number])
    note = style.fitted(note, tile[0] + GAP_IN / 2, size=6)
    _write(axes, x + tile[0] / 2, y + tile[1] + 0.03, note, size=6, ha="center")
    if column.cell is not None:
        cell = (tile[0] / column.maps[0].shape[1], tile[1] / column.maps[0].shape[0])
        place = (x + column.cell[1] * cell[0], y + column.cell[0] * cell[1])
        # Light on dark: one of the two is visible on any image.
        for colour, line in ((style.INK, 2.2), ("white", 1.0)):
            axes.add_artist(Rectangle(place, *cell, fill=False, edgecolor=colour, linewidth=line))


def _bar(axes: Axes, x: float, y: float, scale: tuple[str, str]) -> None:
    """Draw the colour scale over a medium grey, with the labels of its ends."""
    ramp = blend(np.full((1, 256, 3), 128, np.uint8), np.linspace(0, 1, 256)[None])
    axes.imshow(ramp, extent=(x, x + BAR_LENGTH_IN, y + 0.1, y), aspect="auto")
    _write(axes, x - 0.06, y + 0.05, scale[0], size=6.5, ha="right", va="center")
    _write(axes, x + BAR_LENGTH_IN + 0.06, y + 0.05, scale[1], size=6.5, va="center")


def _wrapped(label: str) -> str:
    """A row's label wrapped to at most four lines that fit beside the images."""
    lines = textwrap.wrap(label, 12, max_lines=4, placeholder="…", break_long_words=False)
    return "\n".join(style.fitted(line, LABEL_IN - 0.12, size=7.5, weight="bold") for line in lines)


def _write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 7.5,
    weight: str = "normal",
    ha: str = "left",
    va: str = "top",
) -> None:
    axes.text(x, y, text, size=size, weight=weight, color=style.MUTED, ha=ha, va=va, parse_math=False)
