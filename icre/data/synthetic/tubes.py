"""Tubes, the only shape in synthetic people.

A tube is a straight centre line with a half width at eight stations. Limbs, trunk, head and bags are tubes.
Body frame: x to the person's side, y up from the ground, z forward; unit = mean stature.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, sin

import numpy as np
from numpy.typing import NDArray

from icre.data.synthetic.person import Array

Point = tuple[float, float, float]
# Label, start, end; at eight stations: place from start (0) to end (1), overshoot in body units, half width.
Tube = tuple[int, Point, Point, Array, Array, Array]

_AT = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)
_CAP = np.array([-1, -0.9, -0.6, 0, 0, 0.6, 0.9, 1], np.float32)
FLAT = np.zeros(8, np.float32)
_ROUND = np.array([0, 0.436, 0.8, 1, 1, 0.8, 0.436, 0], np.float32)
EVEN = np.linspace(0, 1, 8, dtype=np.float32)
ELLIPSE = np.sqrt(1 - np.linspace(-1, 1, 8, dtype=np.float32) ** 2) + np.float32(0.02)


@dataclass(frozen=True)
class Figure:
    """Flat tubes in drawing order: labels (n), centres (n, 8, 2), half widths (n, 8), unit normals (n, 2)."""

    labels: NDArray[np.int64]
    centres: Array
    radii: Array
    normals: Array


def flatten(tubes: list[Tube], *, hip: float, lean: float, yaw: float) -> Figure:
    """Lean the part above the ``hip`` forward, then project from ``yaw``: x to the image's right, y up."""
    ends = np.array([(tube[1], tube[2]) for tube in tubes], np.float32)  # n, 2, 3
    x, y = ends[..., 0], ends[..., 1]
    z = ends[..., 2] + lean * np.maximum(0, y - hip)
    # The camera is slightly above: nearer parts are lower in the image.
    flat = np.stack([x * cos(yaw) + z * sin(yaw), y - 0.15 * cos(yaw) * z], -1)
    place, over, radii = (np.stack([tube[k] for tube in tubes]) for k in (3, 4, 5))
    axis = flat[:, 1] - flat[:, 0]
    length = np.maximum(np.hypot(axis[:, 0], axis[:, 1]), 1e-4)[:, None]
    unit = axis / length
    centres = flat[:, :1] + (place * length + over)[..., None] * unit[:, None]
    return Figure(np.array([tube[0] for tube in tubes]), centres, radii, np.stack([-unit[:, 1], unit[:, 0]], -1))


def capsule(label: int, a: Point, b: Point, ra: float, rb: float) -> Tube:
    """A limb from ``a`` to ``b`` with round ends of radii ``ra`` and ``rb``."""
    radius = ra + (rb - ra) * _AT
    return label, a, b, _AT, _CAP * radius, _ROUND * radius


def profile(label: int, x: float, top: float, bottom: float, radii: NDArray[np.floating], z: float = 0.0) -> Tube:
    """An upright tube with a separate half width at each of eight even stations from top to bottom."""
    return label, (x, top, z), (x, bottom, z), EVEN, FLAT, radii.astype(np.float32)
