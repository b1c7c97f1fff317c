"""Figure of a person in a pose: a small dressed 3-D skeleton, as tubes from back to front."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, sin

import numpy as np

from icre.data.synthetic.person import BAG, EYE, HAIR, HAT, LOWER, SHOE, SKIN, UPPER, Body, Person
from icre.data.synthetic.tubes import ELLIPSE, EVEN, FLAT, Figure, Point, Tube, capsule, flatten, profile


@dataclass(frozen=True)
class Pose:
    """One moment of a walk, relative to a camera: ``yaw`` 0 faces the camera; angles in radians."""

    phase: float
    yaw: float


def figure(person: Person, pose: Pose) -> Figure:
    """Pose the person and flatten it: x to the image's right, y up, unit = mean stature."""
    # Sides with x * sin(yaw) > 0 face away from the camera and are drawn first.
    far = 1 if sin(pose.yaw) > 0 else -1
    hands = {side: _arm(person, pose, side) for side in (far, -far)}
    tubes = [*_behind(person), *hands[far], *_leg(person, pose, far), *_leg(person, pose, -far)]
    tubes += [*_trunk(person, pose), *_head(person, pose), *_strap(person), *hands[-far]]
    body = person.body
    return flatten(tubes, hip=body.leg * body.stature, lean=body.lean, yaw=pose.yaw)


def _leg(person: Person, pose: Pose, side: int) -> list[Tube]:
    body, outfit = person.body, person.outfit
    up = body.leg * body.stature
    swing = body.stride * sin(pose.phase) * side
    bend = 0.9 * body.stride * max(0.0, cos(pose.phase) * side)
    hip_x, thigh, shin = 0.5 * body.hip * side, 0.50 * up, 0.44 * up
    foot_x = body.stance * side
    hip = (hip_x, up, 0.0)
    knee = ((hip_x + foot_x) / 2, up - thigh * cos(swing), thigh * sin(swing))
    low = swing - bend
    ankle = (foot_x, knee[1] - shin * cos(low), knee[2] + shin * sin(low))
    toe = (foot_x + 0.02 * side, ankle[1] - 0.028, ankle[2] + 0.075)
    covered = {"trousers": (LOWER, LOWER), "shorts": (LOWER, SKIN), "skirt": (SKIN, SKIN)}[outfit.lower]
    wide = [body.limb * (outfit.loose if label == LOWER else 0.85) for label in covered]
    shin_tube = capsule(covered[1], knee, ankle, 0.036 * wide[1], 0.026 * wide[1])
    thigh_tube = capsule(covered[0], hip, knee, 0.052 * wide[0], 0.038 * wide[0])
    return [capsule(SHOE, ankle, toe, 0.022, 0.019), shin_tube, thigh_tube]


def _arm(person: Person, pose: Pose, side: int) -> list[Tube]:
    body, outfit = person.body, person.outfit
    reach = 0.175 * body.stature
    out = body.spread * side
    swing = -body.swing * sin(pose.phase) * side
    shoulder = ((body.shoulder - 0.022) * side, _shoulder_height(body) - 0.046, 0.0)
    elbow = (shoulder[0] + reach * out, shoulder[1] - reach * cos(swing), reach * sin(swing))
    low = swing + body.elbow
    wrist = (elbow[0] + 0.3 * reach * out, elbow[1] - reach * cos(low), elbow[2] + reach * sin(low))
    hand = (wrist[0], wrist[1] - 0.022, wrist[2] + 0.004)
    thick = 0.034 * body.limb
    sleeve = UPPER if outfit.long_sleeves else SKIN
    fore = 0.026 * body.limb * (1.1 if sleeve == UPPER else 0.85)
    tubes = [
        capsule(SKIN, wrist, hand, 0.020, 0.018),
        capsule(sleeve, elbow, wrist, fore, 0.85 * fore),
        capsule(UPPER, shoulder, elbow, thick, 0.85 * thick),
    ]
    return _carried(person, side, hand) + tubes


def _carried(person: Person, side: int, hand: Point) -> list[Tube]:
    if side < 0 or person.outfit.bag not in ("hand", "case"):
        return []
    x, y, z = hand
    if person.outfit.bag == "hand":
        return [profile(BAG, x, y - 0.01, y - 0.13, np.linspace(0.035, 0.062, 8), z)]
    return [
        profile(BAG, x + 0.02, y, y - 0.12, np.full(8, 0.008), z),
        profile(BAG, x + 0.02, y - 0.10, 0.02, np.full(8, 0.062), z),
    ]


def _shoulder_height(body: Body) -> float:
    return body.stature - 2 * body.head - 0.035


def _trunk(person: Person, pose: Pose) -> list[Tube]:
    body, outfit = person.body, person.outfit
    hip, top, depth = body.leg * body.stature, _shoulder_height(body), body.depth
    hem = hip - 0.02 - outfit.hem
    # Control heights from the hem up to the neck, with half width and half depth at each.
    heights = [hem, hip, hip + 0.35 * (top - hip), top - 0.10, top - 0.03, top + 0.012]
    flare = body.hip + 0.3 * outfit.hem
    shoulder, neck = body.shoulder, 0.45 * body.head
    side = np.array([flare, body.hip, body.waist, 0.93 * shoulder, 0.88 * shoulder, neck])
    front = np.array([depth + 0.2 * outfit.hem, depth, 0.9 * depth, depth, 0.75 * depth, neck])
    widths = np.hypot(side * cos(pose.yaw), front * sin(pose.yaw))
    stations = np.linspace(top + 0.012, hem, 8)
    stations[1] = top - 0.03
    tubes = []
    if outfit.lower == "skirt":
        skirt = np.linspace(widths[1], widths[1] * 1.05 + 0.035 * outfit.loose, 8)
        tubes.append(profile(LOWER, 0.0, hip + 0.05, 0.52 * hip, skirt))
    else:
        tubes.append(profile(LOWER, 0.0, hip + 0.05, hip - 0.05, np.full(8, 0.92 * widths[1])))
    place = ((stations[0] - stations) / (stations[0] - hem)).astype(np.float32)
    radii = np.interp(stations, heights, widths).astype(np.float32)
    return [*tubes, (UPPER, (0.0, stations[0], 0.0), (0.0, hem, 0.0), place, FLAT, radii)]


def _head(person: Person, pose: Pose) -> list[Tube]:
    body, outfit = person.body, person.outfit
    crown, half = body.stature, body.head
    chin, wide = crown - 2 * half, 0.76 * half
    neck = profile(SKIN, 0.0, chin + 0.03, chin - 0.04, np.full(8, 0.40 * half))
    hair = profile(HAIR, 0.0, crown + 0.008, chin + 0.5 * half, ELLIPSE * 1.10 * wide, -0.012)
    face = profile(SKIN, 0.0, crown - 0.25 * half, chin, ELLIPSE * 0.94 * wide, 0.016)
    front = [neck, hair, face]
    if outfit.hair == "bun":
        front.insert(0, profile(HAIR, 0.0, crown + 0.045, crown - 0.01, ELLIPSE * 0.030, -0.02))
    if outfit.hair == "wide":
        front.insert(0, profile(HAIR, 0.0, crown + 0.022, chin + 0.2 * half, ELLIPSE * 1.55 * wide, -0.01))
    if abs(sin(pose.yaw)) < 0.8:
        eye_y, shift = crown - 1.02 * half, 0.03
        front += [
            profile(EYE, side * 0.38 * wide, eye_y + 0.005, eye_y - 0.005, ELLIPSE * 0.006, shift) for side in (-1, 1)
        ]
    return front + _hat(outfit.hat, crown, half)


def _hat(kind: str, crown: float, half: float) -> list[Tube]:
    wide = 0.86 * half
    if kind == "none":
        return []
    dome = profile(HAT, 0.0, crown + 0.022, crown - 0.60 * half, np.sqrt(EVEN + 0.02) * wide, -0.004)
    if kind == "beanie":
        return [dome, profile(HAT, 0.0, crown + 0.050, crown + 0.012, ELLIPSE * 0.018)]
    brim = 1.75 * wide if kind == "brim" else 0.92 * wide
    forward = 0.0 if kind == "brim" else 0.035
    return [dome, profile(HAT, 0.0, crown - 0.52 * half, crown - 0.76 * half, np.full(8, brim), forward)]


def _behind(person: Person) -> list[Tube]:
    body, top = person.body, _shoulder_height(person.body)
    tubes = []
    if person.outfit.bag == "backpack":
        radii = np.array([0.7, 0.9, 1, 1, 1, 1, 1, 0.9]) * (body.waist + 0.025)
        tubes.append(profile(BAG, 0.0, top + 0.02, top - 0.24, radii, -body.depth - 0.05))
    if person.outfit.hair == "long":
        radii = np.linspace(0.85, 1.25, 8) * body.head
        tubes.append(profile(HAIR, 0.0, body.stature - body.head, top - 0.07, radii, -0.02))
    return tubes


def _strap(person: Person) -> list[Tube]:
    body, top, kind = person.body, _shoulder_height(person.body), person.outfit.bag
    front, x = body.depth * 0.8, 0.55 * body.shoulder
    if kind == "backpack":
        return [
            capsule(BAG, (side * x, top, 0.3 * front), (side * x, top - 0.16, front), 0.011, 0.011) for side in (-1, 1)
        ]
    if kind == "shoulder":
        hip = body.leg * body.stature
        strap = capsule(BAG, (-x, top, 0.02), (body.hip, hip + 0.03, front), 0.009, 0.009)
        return [strap, profile(BAG, body.hip + 0.015, hip + 0.045, hip - 0.075, np.full(8, 0.055), 0.03)]
    return []
