"""Backgrounds of the synthetic cameras: a wall, hedge or railing over paved ground, drawn from noise."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from PIL import Image

from icre.data.synthetic.person import Array, tint
from icre.data.synthetic.spec import SyntheticSpec

SUPER = 2  # canvas pixels per image pixel and side
MARGIN = 0.08  # share of a background reserved for random crops, on either axis


def background(spec: SyntheticSpec, rng: Generator, number: int, channels: int) -> Array:
    """The empty scene of a camera, C reflectances 0..1 per pixel, with a margin for crops."""
    height, width = (SUPER * side + int(MARGIN * SUPER * side) for side in (spec.height, spec.width))
    horizon = int(height * rng.uniform(0.58, 0.78))
    kind = (_bricks, _panels, _foliage, _railing)[(number + spec.seed) % 4]  # adjacent cameras differ
    wall = kind(rng, horizon, width)
    ground = _paving(rng, height - horizon, width)
    wall_tone, ground_tone = rng.uniform(0.35, 0.65), rng.uniform(0.4, 0.62)
    wall_base, ground_base = (tint(rng, tone, channels, vivid=(0, 0.2)) for tone in (wall_tone, ground_tone))
    if kind is _foliage:  # dark green to the eye, bright in the near infrared
        wall_base = np.array([0.27, 0.36, 0.22] if channels == 3 else [0.62], np.float32)
    upper, lower = wall_base * (1 + 0.3 * wall[..., None]), ground_base * (1 + 0.3 * ground[..., None])
    scene = np.concatenate([upper, lower]).astype(np.float32)
    scene[horizon - 3 : horizon + 1] *= 0.7
    return np.clip(scene, 0, 1)


def _cloud(rng: Generator, height: int, width: int, cell: int) -> Array:
    """Smooth noise in about -1..1 with features ``cell`` pixels wide."""
    coarse = rng.uniform(-1, 1, (height // cell + 2, width // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _bricks(rng: Generator, height: int, width: int) -> Array:
    size = int(rng.integers(10, 18))
    rows, columns = np.mgrid[:height, :width]
    course = rows // size
    column = columns + (course % 2) * size
    tone = rng.uniform(-0.3, 0.3, (height // size + 1, width // size + 4))[course, column // (2 * size)]
    mortar = (rows % size < 2) | (column % (2 * size) < 2)
    return np.asarray(np.where(mortar, 0.5, tone) + 0.15 * _cloud(rng, height, width, 4), np.float32)


def _panels(rng: Generator, height: int, width: int) -> Array:
    every = int(rng.integers(width // 3, width // 2 + 2))
    columns = (np.arange(width) + rng.integers(every)) % every
    relief = np.where(columns < 4, -0.7, 0.15)[None] + 0.25 * _cloud(rng, height, width, 24)
    top, bottom = int(height * 0.08), int(height * 0.45)
    window = (columns > every * 0.25) & (columns < every * 0.8)
    relief[top:bottom, window] -= 0.8
    relief[bottom : bottom + 3, window] += 0.8
    return np.asarray(relief, np.float32)


def _foliage(rng: Generator, height: int, width: int) -> Array:
    leaves = sum(_cloud(rng, height, width, cell) for cell in (3, 7, 18))
    return np.asarray(0.8 * np.maximum(leaves, -1.2), np.float32)


def _railing(rng: Generator, height: int, width: int) -> Array:
    relief = 0.35 * _cloud(rng, height, width, 30)
    every = int(rng.integers(16, 28))
    relief[height // 3 :, np.arange(width) % every < 4] -= 0.9
    for row in (height // 3, int(height * 0.9)):
        relief[row : row + 5] = -0.8
    return relief


def _paving(rng: Generator, height: int, width: int) -> Array:
    """Slabs in perspective: joints that meet far above the horizon."""
    depth = (np.arange(height) + 8) / height
    rows = np.floor(6 / (depth + 0.35) + rng.random())
    across = (np.arange(width)[None] - width * rng.uniform(0.2, 0.8)) / (width * (0.3 + 0.5 * depth[:, None]))
    slabs = np.floor(across * 2)
    along, across_joint = np.diff(slabs, axis=1, prepend=slabs[:, :1]), np.diff(rows, prepend=rows[:1])
    joint = (along != 0) | (across_joint != 0)[:, None]
    mottle = 0.25 * _cloud(rng, height, width, 3) + 0.25 * _cloud(rng, height, width, 20)
    return np.asarray(np.where(joint, -0.6, 0.1) + mottle, np.float32)
