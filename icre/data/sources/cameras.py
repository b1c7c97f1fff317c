"""Images at ``<camera folder>/<identity, four digits>/<file>``, the layout of SYSU-MM01 and of LLCM's test part."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from icre.data.records import Modality, Record
from icre.data.sources.checks import stop_for
from icre.data.sources.tree import list_images, read_identities

Groups = Mapping[tuple[str, str], Sequence[Record]]
"""The images of each (identity, camera): at least one, sorted by path."""


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera's folder."""

    folder: str
    """Relative to the root."""
    camid: str
    modality: Modality


def read_groups(root: Path, listed_in: str, cameras: Iterable[Camera], *, known: Iterable[Camera]) -> Groups:
    """Images of the identities in the list ``listed_in``: identities ascending, for each the cameras in their order.

    An identity need not be in every camera; a folder without images is as good as none. DataError for one that has
    no folder in any of the ``known`` cameras, and as :func:`read_identities` raises it.
    """
    cameras, known = list(cameras), list(known)
    groups: dict[tuple[str, str], list[Record]] = {}
    problems = []
    for number in read_identities(root, listed_in):
        pid = f"{number:04d}"
        for camera in cameras:
            paths = list_images(root, f"{camera.folder}/{pid}")
            if paths:
                groups[pid, camera.camid] = [Record(pid, camera.modality, camera.camid, path) for path in paths]
        if not any((root / camera.folder / pid).is_dir() for camera in known):
            problems.append(f"listed identity {number} has no folder {pid} in any camera")
    stop_for(problems, root / listed_in, hint="every listed identity has images in the release: unpack them anew")
    return groups


def every_image(groups: Groups) -> list[Record]:
    """All images of all groups, sorted."""
    return sorted(chain.from_iterable(groups.values()))


def draw_one(groups: Groups, *, trial: int) -> list[Record]:
    """One image of each group, in their order, by ``random.choice`` after ``random.seed(trial)``.

    The generator is a private one, which draws the same and leaves the caller's alone.
    """
    generator = random.Random(trial)
    return [generator.choice(group) for group in groups.values()]
