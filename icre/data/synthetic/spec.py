"""Specification of a synthetic data set: its numbers, their rules, and derived cameras and splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from icre.errors import ConfigError

Modality = Literal["visible", "infrared"]
MODALITIES: tuple[Modality, Modality] = ("visible", "infrared")


@dataclass(frozen=True)
class SyntheticSpec:
    """Fully determines a synthetic data set, bitwise on one platform. Raises ``ConfigError`` for invalid values."""

    identities: int
    """Number of people, 3 to 9999; they are numbered from 1."""
    images_per_modality: int
    """Images of each person in each modality, distributed round-robin over that modality's cameras."""
    height: int = 128
    """Image height in pixels."""
    width: int = 64
    """Image width in pixels."""
    difficulty: float = 0.5
    """0 (matching by edges nearly works) to 1 (very hard): scales all nuisances, reduces identity clues."""
    seed: int = 0
    """Random seed; equal seeds and numbers give equal images."""
    visible_cameras: int = 4
    """Number of cameras, numbered 1, 2, 4, 5, 7, ...: every third number is an infrared camera, as in SYSU-MM01."""
    infrared_cameras: int = 2
    """Number of cameras, numbered 3, 6, 9, ..."""
    train_share: float = 0.6
    """Share of training identities; the three shares add up to 1."""
    val_share: float = 0.1
    """Share of validation identities, which select the best epoch."""
    test_share: float = 0.3
    """Share of test identities."""

    def __post_init__(self) -> None:
        broken = list(_broken_rules(self))
        if broken:
            raise ConfigError(
                "synthetic data set: " + "; ".join(broken),
                hint="correct the values named above; every rule that is broken is listed",
            )

    def cameras(self, modality: Modality) -> tuple[int, ...]:
        """The camera numbers of one modality, ascending."""
        if modality == "infrared":
            return tuple(3 * k for k in range(1, self.infrared_cameras + 1))
        return tuple(k + k // 2 + 1 for k in range(self.visible_cameras))

    def split(self) -> dict[str, list[str]]:
        """Identity directory names by split, sorted: disjoint, covering all identities, fixed by the seed."""
        order = np.random.default_rng((self.seed, _SPLIT_STREAM)).permutation(self.identities) + 1
        names = [f"{identity:04d}" for identity in order]
        n_val, n_test = round(self.val_share * self.identities), round(self.test_share * self.identities)
        n_test = min(n_test, self.identities - n_val)
        return {
            "train": sorted(names[n_val + n_test :]),
            "val": sorted(names[:n_val]),
            "test": sorted(names[n_val : n_val + n_test]),
        }


_SPLIT_STREAM = 1


def _broken_rules(spec: SyntheticSpec) -> Iterator[str]:
    ranges: dict[str, tuple[float, float]] = {
        "identities": (3, 9999),
        "images_per_modality": (1, 9999),
        "height": (32, 1024),
        "width": (16, 1024),
        "difficulty": (0, 1),
        "seed": (0, 2**63 - 1),
        "visible_cameras": (1, 99),
        "infrared_cameras": (1, 99),
        "train_share": (0, 1),
        "val_share": (0, 1),
        "test_share": (0, 1),
    }
    for name, (low, high) in ranges.items():
        value = getattr(spec, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            yield f"{name} is {value!r}, must be a number from {low} to {high}"
        elif name not in _REAL and not isinstance(value, int):
            yield f"{name} is {value!r}, must be a whole number"
    shares = (spec.train_share, spec.val_share, spec.test_share)
    if all(isinstance(share, (int, float)) for share in shares) and not abs(sum(shares) - 1) < 1e-6:
        yield f"train_share + val_share + test_share is {sum(shares):g}, must be 1"


_REAL = {"difficulty", "train_share", "val_share", "test_share"}
