"""Images at ``<camera folder>/<identity, four digits>/<file>``, the layout of SYSU-MM01 and of LLCM's test part."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from icre.data.records import Modality, Record
from icre.data.sources.checks import stop_for
from icre.data.sources.tree import list_images, read_identities

Groups = Mapping[tuple[str, str], Sequence[Record]]
"""Images of each (identity, camera): at least one, sorted by path."""


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera's folder."""

    folder: str
    """Folder relative to the root."""
    camid: str
    modality: Modality


def read_groups(root: Path, listed_in: str, cameras: Iterable[Camera], *, known: Iterable[Camera]) -> Groups:
    """Images of the identities in the list ``listed_in``: identities ascending, each with its cameras in order.

    An identity need not be in every camera, and a folder without images counts as missing. Raises DataError for an
    identity without a folder in any of the ``known`` cameras, and as :func:`read_identities`.
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


def group_images(records: Iterable[Record], camids: Sequence[str]) -> Groups:
    """Groups of known images: identities ascending, each with its cameras in order."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records):
        found.setdefault((record.pid, record.camid), []).append(record)
    ordered = product(sorted({pid for pid, _ in found}, key=_by_number), camids)
    return {key: found[key] for key in ordered if key in found}


def draw_seeded(groups: Groups, *, trial: int, shots: int) -> list[Record]:
    """``shots`` images per group (all if there are fewer), in the groups' order.

    One shot: ``random.choice`` after ``random.seed(trial)``. Several: ``numpy.random.choice(files, shots,
    replace=False)`` after ``numpy.random.seed(trial)``. Private generators give the same draws without changing the
    global ones.
    """
    if shots == 1:
        choice = random.Random(trial).choice
        return [choice(group) for group in groups.values()]
    numbers = np.random.RandomState(trial)
    return [
        group[i] for group in groups.values() for i in numbers.choice(len(group), min(shots, len(group)), replace=False)
    ]


def draw_permuted(
    groups: Groups,
    permutations: Mapping[tuple[int, int], NDArray[np.int64]],
    *,
    pids: Iterable[str],
    camids: Iterable[str],
    trial: int,
    shots: int,
) -> tuple[list[Record], list[str]]:
    """The first ``shots`` images of row ``trial`` of each (camera, identity)'s permutation, and the problems found."""
    images = {record.path: record for record in every_image(groups)}
    drawn, problems = [], []
    for pid, camid in product(pids, camids):
        rows = permutations.get((int(camid), int(pid)))
        if rows is None:
            if (pid, camid) in groups:
                problems.append(f"identity {int(pid)} has images in camera {camid}, but no permutation")
            continue
        for number in rows[trial, :shots]:
            path = f"cam{camid}/{pid}/{number:04d}.jpg"
            if path in images:
                drawn.append(images[path])
            else:
                problems.append(
                    f"trial {trial}: image {number} of identity {int(pid)} in camera {camid}: no file {path}"
                )
    return drawn, problems


def _by_number(pid: str) -> tuple[int, str]:
    return (int(pid) if pid.isdigit() else -1, pid)
