"""Scene of a synthetic person: cameras with viewpoint, light and background; occluders; the sensor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from icre.data.synthetic.background import MARGIN, SUPER, background
from icre.data.synthetic.paint import View
from icre.data.synthetic.person import Array, tint
from icre.data.synthetic.spec import Modality, SyntheticSpec

_CAMERA_STREAM = 20


@dataclass(frozen=True)
class Camera:
    """Constants of all images of a camera. C is 3 for visible, 1 for infrared."""

    yaw: float  # radians; usual viewing angle
    scale: float
    shift: tuple[float, float]  # of the person, in image widths and heights
    shear: float
    taper: float
    light: float
    gain: Array  # C, white balance times exposure
    gamma: float
    falloff: Array  # H x W x 1; vignetting, strong under an infrared illuminator
    background: Array  # padded canvas x C


@lru_cache(maxsize=32)
def camera_of(spec: SyntheticSpec, modality: Modality, number: int) -> Camera:
    """The camera with a given number; its deviations grow with difficulty."""
    rng = np.random.default_rng((spec.seed, _CAMERA_STREAM, number))
    amount = spec.difficulty
    channels = 3 if modality == "visible" else 1
    balance = 1 + 0.22 * amount * rng.uniform(-1, 1, channels)
    return Camera(
        yaw=(0.12 + 0.9 * amount) * rng.uniform(-1, 1),
        scale=1 + 0.10 * amount * rng.uniform(-1, 1),
        shift=(0.08 * amount * rng.uniform(-1, 1), 0.02 * amount * rng.uniform(-1, 1)),
        shear=0.12 * amount * rng.uniform(-1, 1),
        taper=0.05 + 0.30 * amount * rng.uniform(0, 1),
        light=float(rng.uniform(-0.9, 0.9)) if modality == "visible" else 0.0,
        gain=np.asarray(balance * 2 ** (0.6 * amount * rng.uniform(-1, 1)), np.float32),
        gamma=1 + 0.3 * amount * rng.uniform(-1, 1),
        falloff=_falloff(spec, rng, 0.55 if modality == "infrared" else 0.12),
        background=background(spec, rng, number, channels),
    )


def _falloff(spec: SyntheticSpec, rng: Generator, depth: float) -> Array:
    rows = np.linspace(-1, 1, spec.height) - rng.uniform(-0.25, 0.15)
    columns = np.linspace(-1, 1, spec.width) - rng.uniform(-0.15, 0.15)
    distance = 0.55 * rows[:, None] ** 2 + 0.55 * columns[None] ** 2
    light: Array = ((1 + 0.25 * depth) * np.exp(-depth * distance))[..., None].astype(np.float32)
    return light


def view(spec: SyntheticSpec, seen: Camera, rng: Generator) -> View:
    """View of a walking person in one image: the camera's view with small jitter."""
    amount, canvas_h, canvas_w = spec.difficulty, SUPER * spec.height, SUPER * spec.width
    jitter = rng.uniform(-1, 1, 4)
    return View(
        unit=0.80 * canvas_h * seen.scale * (1 + (0.01 + 0.05 * amount) * jitter[0]),
        column=canvas_w * (0.5 + seen.shift[0] + (0.01 + 0.06 * amount) * jitter[1]),
        row=canvas_h * (0.955 + seen.shift[1] + (0.004 + 0.02 * amount) * jitter[2]),
        shear=seen.shear + 0.03 * amount * jitter[3],
        taper=seen.taper,
        light=seen.light,
    )


def crop(spec: SyntheticSpec, seen: Camera, rng: Generator) -> Array:
    """A new canvas cropped from the camera's background, canvas H x W x C."""
    pad_h, pad_w = (int(MARGIN * SUPER * side) for side in (spec.height, spec.width))
    sway = rng.uniform(-0.5, 0.5, 2) * min(1.0, 0.1 + spec.difficulty)
    top, left = int(pad_h * (0.5 + sway[0])), int(pad_w * (0.5 + sway[1]))
    return seen.background[top : top + SUPER * spec.height, left : left + SUPER * spec.width].copy()


def shadow(canvas: Array, seen: View) -> None:
    """Darken the ground under the feet, in place."""
    height, width = canvas.shape[:2]
    rows = np.exp(-(((np.arange(height) - seen.row) / (0.035 * seen.unit)) ** 2))
    columns = np.exp(-(((np.arange(width) - seen.column) / (0.16 * seen.unit)) ** 2))
    top = max(0, int(seen.row - 0.09 * seen.unit))
    canvas[top:] *= (1 - 0.45 * rows[top:, None] * columns[None]).astype(np.float32)[..., None]


def occlude(canvas: Array, rng: Generator) -> None:
    """Put a pole or a box in front of the person, in place."""
    height, width, channels = canvas.shape
    tone = tint(rng, rng.uniform(0.2, 0.8), channels, vivid=(0, 0.4))
    if rng.random() < 0.5:
        half, centre = int(width * rng.uniform(0.04, 0.09)), int(width * rng.uniform(0.2, 0.8))
        columns, top = slice(max(0, centre - half), centre + half), 0
    else:
        left = int(width * rng.uniform(-0.1, 0.6))
        columns = slice(max(0, left), left + int(width * rng.uniform(0.4, 0.7)))
        top = int(height * rng.uniform(0.55, 0.8))
    across = np.linspace(-1, 1, canvas[:, columns].shape[1], dtype=np.float32)
    canvas[top:, columns] = tone * (1.05 - 0.35 * across**2)[None, :, None]
    canvas[top : top + 3, columns] *= 1.25


def expose(canvas: Array, spec: SyntheticSpec, seen: Camera, modality: Modality, rng: Generator) -> NDArray[np.uint8]:
    """Sensor image of the canvas: H x W x 3, uint8; the three channels are equal in infrared."""
    amount = spec.difficulty
    small = (canvas[::2, ::2] + canvas[1::2, ::2] + canvas[::2, 1::2] + canvas[1::2, 1::2]) * np.float32(0.25)
    gain = seen.gain * np.float32(2 ** (0.3 * amount * rng.uniform(-1, 1)))
    light = np.clip(small * seen.falloff * gain, 0, 1)
    if amount > 0:
        light **= np.float32(seen.gamma)
    radius = (0.2 if modality == "visible" else 0.35) + amount * rng.uniform(0, 1.1)
    values = _blur(light, radius)
    sigma = (2.0 + 11.0 * amount * rng.uniform(0.5, 1)) * (1.0 if modality == "visible" else 1.3)
    values += np.float32(sigma) * rng.standard_normal(values.shape, np.float32)
    if modality == "infrared":  # read-out noise runs along the rows
        values += np.float32(0.5 * sigma) * rng.standard_normal((spec.height, 1, 1), np.float32)
    image = np.clip(values, 0, 255).astype(np.uint8)
    return image if modality == "visible" else np.repeat(image, 3, axis=2)


def _blur(light: Array, radius: float) -> Array:
    image = Image.fromarray((light * 255).astype(np.uint8).squeeze())
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32)
    return blurred.reshape(light.shape).copy()
