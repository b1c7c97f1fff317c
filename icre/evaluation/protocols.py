"""Evaluation protocols as data: query and gallery images, draws and counting rules.

A protocol defines for each direction which side is drawn, how and how often. The other side has all images of its
modality. docs/protocols.md lists the protocols in a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from icre.config import FOLDER_CHOICES, ProtocolName, Recipe
from icre.data.records import Modality
from icre.evaluation.labels import CameraRule, CmcUnit, check_at_least, check_conventions

Draw = Literal["pcg64", "seeded", "official", "none"]

DRAWS: dict[Draw, str] = {
    "pcg64": "PCG64 of (seed, trial)",
    "seeded": "random.seed(trial)",
    "official": "rand_perm_cam.mat",
    "none": "every image",
}
VISIBLE_TO_INFRARED, INFRARED_TO_VISIBLE = "visible_to_infrared", "infrared_to_visible"


@dataclass(frozen=True)
class Direction:
    """Query and gallery modality of one direction."""

    query: Modality
    gallery: Modality
    drawn: Literal["query", "gallery"] = "gallery"
    """Side that is redrawn in each trial."""
    published: Mapping[str, int] = field(default_factory=dict)
    """Published numbers of ``query`` and ``gallery`` images per trial in the complete data set, if any."""


DIRECTIONS: dict[str, Direction] = {
    VISIBLE_TO_INFRARED: Direction("visible", "infrared"),
    INFRARED_TO_VISIBLE: Direction("infrared", "visible"),
}


@dataclass(frozen=True)
class Protocol:
    """All choices of a protocol. Raises :class:`ProtocolError` for invalid ones."""

    name: ProtocolName = "folder"
    directions: Mapping[str, Direction] = field(default_factory=lambda: DIRECTIONS)
    trials: int = 10
    """Draws in each direction."""
    shots: int = 1
    """Images drawn per (identity, camera); all if there are fewer."""
    draw: Draw = "pcg64"
    """Method of the draw, see docs/protocols.md."""
    cameras: tuple[str, ...] | None = None
    """Cameras to draw from; None: all of the modality."""
    camera_rule: CameraRule = "none"
    """Rule for the gallery images that a query skips, see :func:`icre.evaluation.evaluate_ranking`."""
    cmc: CmcUnit = "image"
    """Whether CMC counts images or identities."""
    seed: int = 0
    """Seed of the draw ``pcg64``; the other draws are seeded by the trial number alone."""

    def __post_init__(self) -> None:
        check_conventions(self.camera_rule, self.cmc)
        check_at_least(1, trials=self.trials, shots=self.shots)
        check_at_least(0, seed=self.seed)

    def describe(self) -> str:
        """One line with every choice, printed above a table."""
        what = "; ".join(f"{name} {value}" for name, value in self.choices().items() if name != "name")
        return f"Protocol {self.name}: {what}; percent, mean ± sample standard deviation over trials"

    def choices(self) -> dict[str, str | int]:
        """Every choice by name, as stored with results."""
        drawn: dict[str, str | int] = {} if self.draw == "none" else {"shots": self.shots}
        if self.draw == "pcg64":
            drawn["seed"] = self.seed
        cameras = {} if self.cameras is None else {"gallery_cameras": " ".join(self.cameras)}
        queried = [name for name, direction in self.directions.items() if direction.drawn == "query"]
        sides = {"drawn_queries": " ".join(queried)} if queried else {}
        return {
            "name": self.name,
            "trials": self.trials,
            "draw": DRAWS[self.draw],
            **drawn,
            **cameras,
            **sides,
            "camera_rule": self.camera_rule,
            "cmc": self.cmc,
        }


def protocol_of(recipe: Recipe) -> Protocol:
    """The recipe's protocol."""
    settings = recipe.evaluation
    if settings.protocol != "folder":
        return FIXED[settings.protocol]
    return Protocol(**settings.model_dump(include=FOLDER_CHOICES))


def for_validation(protocol: Protocol) -> Protocol:
    """The protocol on held-out training identities, which the official permutations do not cover."""
    return replace(protocol, draw="seeded") if protocol.draw == "official" else protocol


def _sysu(mode: Literal["all", "indoor"], shots: int) -> Protocol:
    counts = {("all", 1): 301, ("all", 10): 3_010, ("indoor", 1): 112, ("indoor", 10): 1_120}
    shot = "single" if shots == 1 else "multi"
    return Protocol(
        name=f"sysu-{mode}-{shot}",  # type: ignore[arg-type]  # a test compares the names with the type's
        directions={
            INFRARED_TO_VISIBLE: Direction(
                "infrared", "visible", published={"query": 3_803, "gallery": counts[mode, shots]}
            )
        },
        shots=shots,
        draw="seeded",
        cameras=("1", "2", "4", "5") if mode == "all" else ("1", "2"),
        camera_rule="sysu",
        cmc="identity",
    )


def _llcm() -> Protocol:
    return Protocol(
        name="llcm",
        directions={
            VISIBLE_TO_INFRARED: Direction("visible", "infrared", published={"query": 8_680}),
            INFRARED_TO_VISIBLE: Direction("infrared", "visible", published={"query": 7_166}),
        },
        draw="seeded",
        camera_rule="same_camera",
        cmc="identity",
    )


_SYSU = [
    _sysu("all", 1),
    _sysu("all", 10),
    _sysu("indoor", 1),
    _sysu("indoor", 10),
]
_KNOWN = [
    *_SYSU,
    *(replace(each, name=f"{each.name}-official", draw="official") for each in _SYSU),  # type: ignore[arg-type]
    Protocol(
        name="regdb",
        directions={
            VISIBLE_TO_INFRARED: Direction("visible", "infrared", published={"query": 2_060, "gallery": 2_060}),
            INFRARED_TO_VISIBLE: Direction("infrared", "visible", published={"query": 2_060, "gallery": 2_060}),
        },
        trials=1,
        draw="none",
    ),
    _llcm(),
    # As in the public test script since June 2023: drawn infrared images query all visible ones.
    replace(
        _llcm(),
        name="llcm-drawn-queries",
        directions={VISIBLE_TO_INFRARED: Direction("infrared", "visible", drawn="query", published={"gallery": 8_680})},
    ),
]
FIXED: dict[str, Protocol] = {known.name: known for known in _KNOWN}
"""The protocols of benchmark data sets, by name."""
