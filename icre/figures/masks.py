"""MPFR's spatial masks over images, one row per stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from icre.figures import style
from icre.figures.overlays import Map, Overlay, overlay_grid


@dataclass(frozen=True, eq=False)
class MaskSample:
    """An image and its MPFR masks."""

    image: NDArray[np.uint8]
    """(H, W, 3), the same shape for all images of a figure."""
    caption: str
    masks: Map
    """(S, h, w) in [0, 1], one for each stage."""


@style.styled
def mask_overlays(visible: Sequence[MaskSample], infrared: Sequence[MaskSample], *, stages: Sequence[int]) -> Figure:
    """Images in the first row, below them the same images with each stage's mask; visible left, infrared right.

    stages: backbone stage number of each mask. Colours span the smallest to the largest value of a row, printed at its
    left: masks often vary little, which a scale from 0 to 1 would hide.
    """
    spans = _spans([*visible, *infrared], len(stages))
    names = [f"stage {stage} {low:.3f}–{high:.3f}" for stage, (low, high) in zip(stages, spans, strict=True)]
    sides = ([_column(masked, spans) for masked in side] for side in (visible, infrared))
    return overlay_grid(*sides, rows=names, scale=("smallest", "largest value in the row"))


def _spans(images: Sequence[MaskSample], stages: int) -> list[tuple[float, float]]:
    """Smallest and largest value of each stage over all images."""
    if not images:
        return [(0.0, 1.0)] * stages
    values = np.stack([masked.masks for masked in images])
    return [(float(values[:, s].min()), float(values[:, s].max())) for s in range(stages)]


def _column(masked: MaskSample, spans: Sequence[tuple[float, float]]) -> Overlay:
    maps = [(mask - low) / (high - low or 1.0) for mask, (low, high) in zip(masked.masks, spans, strict=True)]
    return Overlay(masked.image, masked.caption, maps)
