"""Grad-CAM maps over images, one row per model (the paper's Figure 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from icre.figures import style
from icre.figures.overlays import Map, Overlay, overlay_grid


@dataclass(frozen=True, eq=False)
class GradCamSample:
    """An image and its Grad-CAM map for each model."""

    image: NDArray[np.uint8]
    """(H, W, 3), the same shape for all images of a figure."""
    caption: str
    heat: Mapping[str, Map]
    """Name of a model to its map, (h, w) in [0, 1]; same models and order for all images."""


@style.styled
def heat_rows(visible: Sequence[GradCamSample], infrared: Sequence[GradCamSample]) -> Figure:
    """Images in the first row, below them the same images with each model's map; visible left, infrared right.

    An all-zero map, which looks like a dark image, is marked "nowhere".
    """
    shown = [*visible, *infrared]
    names = list(shown[0].heat) if shown else []
    marked = any(not one.any() for heated in shown for one in heated.heat.values())
    sides = ([_column(heated, names, marked=marked) for heated in side] for side in (visible, infrared))
    return overlay_grid(*sides, rows=names, scale=("0", "largest value of the map"))


def _column(heated: GradCamSample, names: Sequence[str], *, marked: bool) -> Overlay:
    maps = [heated.heat[name] for name in names]
    notes = ["" if one.any() else "nowhere" for one in maps] if marked else []
    return Overlay(heated.image, heated.caption, maps, notes)
