"""Appearance of a synthetic person: clues shared by both modalities, and tones specific to each.

Shape, gait, cut and pattern are shared. Colour (visible) and reflectance (infrared) are drawn from
separate streams, so grey levels of one modality carry no information about the other.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from icre.data.synthetic.spec import MODALITIES, Modality, SyntheticSpec

Array = NDArray[np.float32]

SKIN, HAIR, HAT, UPPER, LOWER, SHOE, BAG, EYE = range(1, 9)
N_LABELS = 9  # 0 is "no person here"
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_CLUES, _VISIBLE, _INFRARED = 10, 11, 12


@dataclass(frozen=True)
class Body:
    """Lengths in units of the mean stature (half widths where noted); angles in radians."""

    stature: float
    leg: float  # height of the hip over stature
    shoulder: float  # half width
    waist: float  # half width
    hip: float  # half width
    depth: float  # chest half depth
    head: float  # half height
    limb: float  # thickness factor
    stance: float  # half distance of the feet
    stride: float  # leg swing amplitude
    swing: float  # arm swing amplitude
    elbow: float  # standing bend
    lean: float  # forward lean
    spread: float  # arms away from the body
    phase: float  # usual phase of the stride


@dataclass(frozen=True)
class Outfit:
    """Worn and carried parts of the silhouette."""

    hem: float  # length of the upper garment below the hip
    long_sleeves: bool
    lower: str  # trousers, shorts or skirt
    loose: float  # width factor of the lower garment
    hair: str  # short, long, bun or wide
    hat: str  # none, cap, beanie or brim
    bag: str  # none, backpack, shoulder, hand or case


@dataclass(frozen=True)
class Pattern:
    """A garment's pattern. ``period`` and positions in units of the mean stature, ``angle`` in radians."""

    kind: str  # plain, stripes, checks, dots, band or block
    angle: float  # 0 gives horizontal stripes
    period: float
    contrast: float  # half the grey difference of the two tones, the same in both modalities
    place: tuple[float, float]  # centre of a band or block, relative to the chest


@dataclass(frozen=True)
class Tones:
    """Reflectance 0..1 by label. ``base`` and ``accent`` are N_LABELS x C; C is 3 visible, 1 infrared."""

    base: Array
    accent: Array  # second tone of a pattern; only UPPER and LOWER rows differ from base


@dataclass(frozen=True)
class Person:
    """One identity: the properties shared by all of its images."""

    body: Body
    outfit: Outfit
    upper: Pattern
    lower: Pattern
    tones: dict[Modality, Tones]


@lru_cache(maxsize=512)
def person(spec: SyntheticSpec, identity: int) -> Person:
    """The person with a given number. Difficulty pulls body, gait and pattern contrast towards the mean."""
    keep = 1 - 0.65 * spec.difficulty
    rng = np.random.default_rng((spec.seed, _CLUES, identity))
    body, outfit = _body(rng, keep), _outfit(rng)
    upper = _pattern(rng, keep, ("plain", "stripes", "stripes", "stripes", "checks", "dots", "band", "block"))
    lower = _pattern(rng, keep, ("plain", "plain", "stripes", "stripes", "checks", "dots"))
    streams = {"visible": _VISIBLE, "infrared": _INFRARED}
    tones = {m: _tones(np.random.default_rng((spec.seed, streams[m], identity)), m, upper, lower) for m in MODALITIES}
    return Person(body, outfit, upper, lower, tones)


def _body(rng: Generator, keep: float) -> Body:
    means_and_ranges = (
        (1.0, 0.11), (0.49, 0.035), (0.122, 0.026), (0.092, 0.026), (0.098, 0.020),
        (0.072, 0.018), (0.070, 0.009), (1.0, 0.22), (0.062, 0.032), (0.34, 0.20),
        (0.42, 0.30), (0.38, 0.32), (0.04, 0.09), (0.20, 0.13), (0.0, 1.2),
    )  # fmt: skip
    return Body(*(mean + keep * half * rng.uniform(-1, 1) for mean, half in means_and_ranges))


def _outfit(rng: Generator) -> Outfit:
    coat = rng.random() < 0.22
    return Outfit(
        hem=rng.uniform(0.12, 0.22) if coat else rng.uniform(0.0, 0.07),
        long_sleeves=bool(coat or rng.random() < 0.6),
        lower=str(rng.choice(["trousers", "trousers", "trousers", "shorts", "skirt"])),
        loose=rng.uniform(0.85, 1.45),
        hair=str(rng.choice(["short", "short", "long", "bun", "wide"])),
        hat=str(rng.choice(["none", "none", "none", "cap", "beanie", "brim"])),
        bag=str(rng.choice(["none", "none", "backpack", "shoulder", "hand", "case"])),
    )


def _pattern(rng: Generator, keep: float, kinds: tuple[str, ...]) -> Pattern:
    return Pattern(
        kind=str(rng.choice(kinds)),
        angle=float(rng.choice([0, 1, 2, 3])) * np.pi / 4,
        period=0.085 * 1.75 ** rng.uniform(-1, 1),
        contrast=rng.uniform(0.15, 0.27) * keep,
        place=(rng.uniform(-0.03, 0.03), rng.uniform(-0.12, 0.02)),
    )


def _tones(rng: Generator, modality: Modality, upper: Pattern, lower: Pattern) -> Tones:
    hues = _visible_base(rng) if modality == "visible" else _infrared_base(rng)
    accent = hues.copy()
    for label, pattern in ((UPPER, upper), (LOWER, lower)):
        # The sign is drawn per modality: a light stripe in one may be dark in the other.
        step = pattern.contrast * rng.choice([-1.0, 1.0])
        # Centres are symmetric about 1/2 at any contrast, so means stay independent of it.
        centre = rng.uniform(abs(step) + 0.06, 0.94 - abs(step))
        hues[label], accent[label] = (tint(rng, centre + sign * step, hues.shape[1]) for sign in (-1, 1))
    return Tones(hues, accent)


def _visible_base(rng: Generator) -> Array:
    base = np.zeros((N_LABELS, 3), np.float32)
    light = rng.uniform(0, 1)
    base[SKIN] = np.array([0.45, 0.30, 0.22]) * (1 - light) + np.array([0.95, 0.76, 0.64]) * light
    hair = np.array([[0.10, 0.08, 0.07], [0.25, 0.16, 0.10], [0.42, 0.26, 0.13], [0.80, 0.64, 0.38],
                     [0.60, 0.58, 0.56], [0.52, 0.22, 0.12]])  # fmt: skip
    base[HAIR] = hair[rng.integers(len(hair))]
    for label in (HAT, BAG):
        base[label] = tint(rng, rng.uniform(0.15, 0.8), 3)
    base[SHOE] = tint(rng, rng.choice([0.12, 0.2, 0.85]), 3) * 0.9
    base[EYE] = 0.45 * base[SKIN]
    return base


def _infrared_base(rng: Generator) -> Array:
    base = np.zeros((N_LABELS, 1), np.float32)
    base[SKIN] = rng.uniform(0.80, 0.90)  # skin is bright in the near infrared
    for label, (low, high) in {
        HAIR: (0.15, 0.65),
        HAT: (0.15, 0.85),
        BAG: (0.15, 0.85),
        SHOE: (0.1, 0.8),
    }.items():
        base[label] = rng.uniform(low, high)
    base[EYE] = 0.6 * base[SKIN]
    return base


def tint(rng: Generator, grey: float, channels: int, *, vivid: tuple[float, float] = (0.08, 0.7)) -> Array:
    """A random tone of shape C whose luma is ``grey``; ``vivid`` is a range of shares of full saturation."""
    if channels == 1:
        return np.array([grey], np.float32)
    pure = np.array(colorsys.hsv_to_rgb(rng.random(), 1.0, 1.0))
    chroma = pure - pure @ LUMA
    # The largest step along the chroma that stays inside [0, 1] leaves the luma exact.
    room = np.where(chroma > 0, (1 - grey) / np.maximum(chroma, 1e-6), grey / np.maximum(-chroma, 1e-6))
    return np.asarray(grey + chroma * min(1.0, room.min()) * rng.uniform(*vivid), np.float32)
