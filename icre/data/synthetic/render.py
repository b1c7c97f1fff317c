"""Render one synthetic image from its five coordinates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from icre.data.synthetic.figure import Pose
from icre.data.synthetic.paint import paint
from icre.data.synthetic.person import Array, Person, person
from icre.data.synthetic.scene import Camera, camera_of, crop, expose, occlude, shadow, view
from icre.data.synthetic.spec import MODALITIES, Modality, SyntheticSpec

_IMAGE_STREAM, _QUALITY_STREAM = 30, 31
_STRANGERS = 100_000  # identities from here on appear only as passers-by


def render_image(spec: SyntheticSpec, identity: int, modality: Modality, camera: int, index: int) -> NDArray[np.uint8]:
    """The ``index``-th image of a person by a camera: H x W x 3, a pure function of its arguments.

    ``identity`` counts from 1, ``camera`` is one of ``spec.cameras(modality)``. Infrared images have three
    equal channels. Every ``index`` from 0 is a new moment, also beyond ``spec.images_per_modality``.
    """
    rng = _stream(spec, _IMAGE_STREAM, identity, modality, camera, index)
    seen = camera_of(spec, modality, camera)
    canvas = crop(spec, seen, rng)
    _walk(canvas, spec, person(spec, identity), seen, modality, rng, aside=0.0)
    if rng.random() < 0.55 * spec.difficulty:
        _obstruct(canvas, spec, seen, modality, rng)
    return expose(canvas, spec, seen, modality, rng)


def jpeg_quality(spec: SyntheticSpec, identity: int, modality: Modality, camera: int, index: int) -> int:
    """Random JPEG quality of an image: 95 at difficulty 0, from 40 to 95 at difficulty 1."""
    rng = _stream(spec, _QUALITY_STREAM, identity, modality, camera, index)
    return 95 - int(55 * spec.difficulty * rng.random())


def _stream(spec: SyntheticSpec, purpose: int, identity: int, modality: Modality, camera: int, index: int) -> Generator:
    where = MODALITIES.index(modality)
    return np.random.default_rng((spec.seed, purpose, identity, where, camera, index))


def _walk(
    canvas: Array,
    spec: SyntheticSpec,
    who: Person,
    seen: Camera,
    modality: Modality,
    rng: Generator,
    *,
    aside: float,
) -> None:
    """Draw one person in a pose of this image, ``aside`` image widths off the usual position."""
    amount = spec.difficulty
    pose = Pose(
        phase=who.body.phase + 1.0 + (0.25 + 2.9 * amount) * rng.uniform(-1, 1),
        yaw=float(np.clip(seen.yaw + (0.05 + 0.45 * amount) * rng.uniform(-1, 1), -1.4, 1.4)),
    )
    usual = view(spec, seen, rng)
    at = replace(usual, column=usual.column + aside * canvas.shape[1])
    shadow(canvas, at)
    paint(canvas, who, pose, at, modality)


def _obstruct(canvas: Array, spec: SyntheticSpec, seen: Camera, modality: Modality, rng: Generator) -> None:
    if rng.random() < 0.6:
        occlude(canvas, rng)
        return
    stranger = person(spec, _STRANGERS + int(rng.integers(1000)))
    aside = float(rng.choice([-1, 1]) * rng.uniform(0.36, 0.55))
    _walk(canvas, spec, stranger, seen, modality, rng, aside=aside)
