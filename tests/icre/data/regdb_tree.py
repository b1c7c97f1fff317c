"""A small tree in RegDB's layout: 12 people with 3 + 3 images, ten splits into two halves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PEOPLE = list(range(1, 13))
FOLDERS = {"visible": "Visible", "infrared": "Thermal"}
IMAGES_EACH = 3


def images(modality: str, pid: int) -> list[str]:
    letter = modality[0]
    return [f"{FOLDERS[modality]}/{pid}/male_cam2_{letter}_{pid:05d}_{n}.bmp" for n in range(IMAGES_EACH)]


def half(part: str, trial: int) -> list[int]:
    """Identities of a part of a split, in the order in which its list has them."""
    turned = PEOPLE[trial:] + PEOPLE[:trial]
    return turned[::2] if part == "train" else turned[1::2]


def build_regdb(root: Path, make: Callable[[Path], None]) -> None:
    """``make`` is called once for each image, when its folder is there."""
    (root / "idx").mkdir()
    for modality, folder in FOLDERS.items():
        for pid in PEOPLE:
            (root / folder / str(pid)).mkdir(parents=True)
            for path in images(modality, pid):
                make(root / path)
        for trial in range(1, 11):
            for part in ("train", "test"):
                # Labels count from 0 in each list and say nothing about the identity's own number.
                lines = [f"{p} {label}" for label, pid in enumerate(half(part, trial)) for p in images(modality, pid)]
                (root / f"idx/{part}_{folder.lower()}_{trial}.txt").write_text("\n".join(lines) + "\n")
