"""Paint a posed figure onto a canvas: outlines in a camera's view, garment patterns, rounded shading."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from icre.data.synthetic.figure import Pose, figure
from icre.data.synthetic.person import LOWER, UPPER, Array, Pattern, Person
from icre.data.synthetic.spec import Modality
from icre.data.synthetic.tubes import Figure

_NESTED = (1.0, 0.80, 0.56, 0.28)  # share of a tube's width that each shade level fills, rim to core
_SHADES = {"visible": (0.66, 0.84, 0.96, 1.04), "infrared": (0.60, 0.84, 1.0, 1.08)}
_LEVELS = len(_NESTED)


@dataclass(frozen=True)
class View:
    """A camera's map from body coordinates to canvas pixels, and the direction of its light."""

    unit: float  # canvas pixels of one mean stature
    column: float  # canvas column of the feet
    row: float  # canvas row of the ground
    shear: float
    taper: float  # relative widening per mean stature of height: the camera looks down
    light: float  # -1 from the left to 1 from the right

    def to_canvas(self, points: Array) -> Array:
        """Map body points (..., 2) to canvas (column, row), (..., 2)."""
        x, y = points[..., 0], points[..., 1]
        column = self.column + self.unit * (x * (1 + self.taper * (y - 0.5)) + self.shear * y)
        return np.stack([column, self.row - self.unit * y], -1)

    def to_body(self, rows: Array, columns: Array) -> tuple[Array, Array]:
        """Inverse of :meth:`to_canvas` for pixel centres: x and y, each of the given shape."""
        y = (self.row - rows - 0.5) / self.unit
        x = ((columns + 0.5 - self.column) / self.unit - self.shear * y) / (1 + self.taper * (y - 0.5))
        return x, y


def paint(canvas: Array, person: Person, pose: Pose, view: View, modality: Modality) -> None:
    """Draw the person over ``canvas`` (H x W x C, reflectance 0..1), in place."""
    height, width = canvas.shape[:2]
    codes = _rasterise(figure(person, pose), view, height, width)
    inside = np.flatnonzero(codes)
    labels = codes.reshape(-1)[inside] // _LEVELS
    tones = person.tones[modality]
    colour = tones.base[labels]
    for label, pattern in ((UPPER, person.upper), (LOWER, person.lower)):
        worn = np.flatnonzero(labels == label)
        if pattern.kind != "plain" and worn.size:
            x, y = view.to_body(*_grid(inside[worn], width))
            share = _weave(pattern, *_cloth(person, pose, label, x, y), 1.2 / view.unit)[:, None]
            colour[worn] += share * (tones.accent[label] - tones.base[label])
    shade = _shading(codes, modality).reshape(-1)[inside]
    canvas.reshape(height * width, -1)[inside] = colour * shade[:, None]


def _grid(flat: NDArray[np.int64], width: int) -> tuple[Array, Array]:
    rows, columns = np.divmod(flat.astype(np.int32), np.int32(width))
    return rows.astype(np.float32), columns.astype(np.float32)


def _rasterise(shape: Figure, view: View, height: int, width: int) -> NDArray[np.uint8]:
    """Codes label * levels + level, H x W; 0 outside the person."""
    nested = np.array(_NESTED, np.float32)[:, None, None]
    # Inner levels are shifted towards the light, which moves a limb's bright ridge off its axis.
    offset = (1 - nested) * 0.55 * view.light * shape.radii * np.sign(shape.normals[:, :1])
    left, right = offset - nested * shape.radii, offset + nested * shape.radii
    across = np.concatenate([left, right[..., ::-1]], -1)[..., None] * shape.normals[:, None]
    spine = np.concatenate([shape.centres, shape.centres[:, ::-1]], 1)
    outlines = view.to_canvas(spine + across).reshape(_LEVELS, len(shape.labels), -1).tolist()
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    for tube, label in enumerate(shape.labels.tolist()):
        for level in range(_LEVELS):
            draw.polygon(outlines[level][tube], fill=label * _LEVELS + level)
    return np.asarray(image)


def _shading(codes: NDArray[np.uint8], modality: Modality) -> Array:
    """Brightness factor H x W, smoothed to hide the levels."""
    table = (np.array(_SHADES[modality] * 16, np.float32) * 200).astype(np.uint8)
    table[0] = 170
    blurred = Image.fromarray(table[codes]).filter(ImageFilter.BoxBlur(1.5))
    return np.asarray(blurred, np.float32) / np.float32(200)


def _cloth(person: Person, pose: Pose, label: int, x: Array, y: Array) -> tuple[Array, Array]:
    """Garment coordinates of body points: sideways from the middle of the front, and up from the chest."""
    body = person.body
    hip = body.leg * body.stature
    origin = hip + 0.22 if label == UPPER else hip - 0.2
    turned = body.depth * sin(pose.yaw) + body.lean * sin(pose.yaw) * np.maximum(0, y - hip)
    return (x - turned) / max(0.5, cos(pose.yaw)), y - np.float32(origin)


def _weave(pattern: Pattern, u: Array, v: Array, soft: float) -> Array:
    """Share of the accent tone, 0..1, at cloth coordinates; edges ``soft`` wide (body units)."""
    across, up = pattern.place
    if pattern.kind == "band":
        return _inside(np.abs(v - np.float32(up)), 0.6 * pattern.period, soft)
    if pattern.kind == "block":
        far = np.maximum(np.abs(u - np.float32(across)), 0.8 * np.abs(v - np.float32(up)))
        return _inside(far, 0.6 * pattern.period, soft)
    c, s = cos(pattern.angle), sin(pattern.angle)
    first = _wave(v * c + u * s, pattern.period)
    if pattern.kind == "stripes":
        return _share(0.5 + first * pattern.period / (4 * soft))
    second = _wave(u * c - v * s, pattern.period)
    if pattern.kind == "checks":
        return _share(0.5 + first * second * pattern.period / (4 * soft))
    return _share(0.5 + (first + second - 0.5) * pattern.period / (6 * soft))  # dots


def _wave(at: Array, period: float) -> Array:
    return np.asarray(np.sin(at * np.float32(2 * np.pi / period)), np.float32)


def _inside(distance: Array, half: float, soft: float) -> Array:
    return _share(0.5 + (np.float32(half) - distance) / np.float32(soft))


def _share(values: Array) -> Array:
    return np.asarray(np.clip(values, 0, 1), np.float32)
