"""Attention of one SDCE token over images, one row per stage of the cascade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from icre.figures import style
from icre.figures.overlays import Map, Overlay, overlay_grid


@dataclass(frozen=True, eq=False)
class AttentionSample:
    """An image, one of its tokens, and that token's attention in each stage."""

    image: NDArray[np.uint8]
    """(H, W, 3), the same shape for all images of a figure."""
    caption: str
    cell: tuple[int, int]
    """Row and column of the token in the grid of the maps."""
    attention: Sequence[Map]
    """(h, w) for each stage: probabilities that add up to 1."""


@style.styled
def attention_map(
    visible: Sequence[AttentionSample], infrared: Sequence[AttentionSample], *, stages: Sequence[str]
) -> Figure:
    """Images with the chosen token framed, below them its attention in each stage; visible left, infrared right.

    stages: name of each stage ("cross-attention"). Each map has its own colour scale from 0 to its largest value, which
    is printed below as a multiple of uniform attention.
    """
    sides = ([_column(attended) for attended in side] for side in (visible, infrared))
    scale = ("0", "largest value of the map, under it as a multiple of even attention")
    return overlay_grid(*sides, rows=stages, scale=scale)


def _column(attended: AttentionSample) -> Overlay:
    peaks = [float(probability.max()) for probability in attended.attention]
    maps = [probability / peak for probability, peak in zip(attended.attention, peaks, strict=True)]
    notes = [f"{_multiple(peak * one.size)} × even" for peak, one in zip(peaks, maps, strict=True)]
    return Overlay(attended.image, attended.caption, maps, notes, attended.cell)


def _multiple(times: float) -> str:
    return f"{times:.3g}" if times < 1000 else f"{times:.0f}"
