"""SYSU-MM01: ``cam1..cam6/<id:04d>/<n:04d>.jpg``, identity lists and gallery permutations in ``exp/``.

Cameras 1, 2, 4 and 5 are visible, 3 and 6 infrared. Infrared queries, visible gallery, ten trials.
Functions take the folder that contains ``cam1`` and ``exp`` and return sorted records, whose order labels identities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from icre.data.records import Modality, Record
from icre.data.sources.cameras import Camera, Groups, draw_permuted, draw_seeded, every_image, read_groups
from icre.data.sources.checks import check_choice, count_images, differences, identities, stop_for
from icre.data.sources.permutations import TRIALS, read_permutations
from icre.data.sources.tree import as_root, read_identities
from icre.errors import ProtocolError

Mode = Literal["all", "indoor"]
Draw = Literal["seeded", "official"]

GALLERY_CAMERAS: dict[Mode, tuple[int, ...]] = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
QUERY_CAMERAS = (3, 6)
TRAIN_LISTS = ("exp/train_id.txt", "exp/val_id.txt")
TEST_LIST = "exp/test_id.txt"
PERMUTATIONS = "exp/rand_perm_cam.mat"

PUBLISHED = {
    "training identities": 395,
    "visible training images": 22_258,
    "infrared training images": 11_909,
    "test identities": 96,
    "identities in both training and test": 0,
    "query images": 3_803,
    "single-shot gallery images, all-search": 301,
    "single-shot gallery images, indoor": 112,
    "multi-shot gallery images, all-search": 3_010,
    "multi-shot gallery images, indoor": 1_120,
}


def train(root: str | Path) -> list[Record]:
    """Every image of the identities in ``exp/train_id.txt`` and ``exp/val_id.txt``, of all six cameras.

    Raises DataError when a list or the tree is unusable, or an identity is in both lists.
    """
    folder = as_root(root)
    first, second = (_groups(folder, name, (1, 2, 3, 4, 5, 6)) for name in TRAIN_LISTS)
    twice = sorted({pid for pid, _ in first} & {pid for pid, _ in second})
    problems = [f"identity {pid} is in {TRAIN_LISTS[0]} as well" for pid in twice]
    stop_for(problems, folder / TRAIN_LISTS[1], hint="take both lists from the release")
    return every_image({**first, **second})


def query(root: str | Path, mode: Mode) -> list[Record]:
    """Every image of the test identities in cameras 3 and 6, the same in both modes.

    Raises DataError when the list or the tree is unusable, ProtocolError for an invalid ``mode``.
    """
    check_choice("mode", mode, GALLERY_CAMERAS)
    return every_image(_groups(as_root(root), TEST_LIST, QUERY_CAMERAS))


def test(root: str | Path) -> list[Record]:
    """Every image of the test identities, of all six cameras, from which queries and galleries are selected.

    Raises DataError when the list or the tree is unusable.
    """
    return every_image(_groups(as_root(root), TEST_LIST, (1, 2, 3, 4, 5, 6)))


def gallery(root: str | Path, mode: Mode, trial: int, *, shots: int = 1, draw: Draw = "seeded") -> list[Record]:
    """``shots`` images per test identity and camera of the mode (all if there are fewer), for one trial.

    trial: 0 to 9. mode: ``all`` takes cameras 1, 2, 4 and 5, ``indoor`` 1 and 2. draw: report it with
    results, as the two draws pick different images.

    - ``official``: the first ``shots`` of row ``trial`` of ``exp/rand_perm_cam.mat``, as in the official evaluation.
    - ``seeded``, one shot: ``random.seed(trial)``, then ``random.choice`` of the sorted files of each camera of each
      identity, as in AGW, CAJ and DEEN.
    - ``seeded``, several shots: the same order, ``numpy.random.choice(files, shots, replace=False)`` after
      ``numpy.random.seed(trial)``. The public multi-shot evaluators draw this way but seed only ``random``, which
      leaves NumPy's draw unseeded; the NumPy seed is added here.

    Raises DataError when the list, the tree or the permutations are unusable, ProtocolError for an invalid argument.
    """
    check_choice("mode", mode, GALLERY_CAMERAS)
    check_choice("trial", trial, range(TRIALS))
    check_choice("draw", draw, ("seeded", "official"))
    if shots < 1:
        raise ProtocolError(f"shots is {shots}; it must be at least 1", hint="1 is single-shot, 10 is multi-shot")
    folder = as_root(root)
    groups = _groups(folder, TEST_LIST, GALLERY_CAMERAS[mode])
    if draw == "official":
        return sorted(_draw_official(folder, groups, mode, trial=trial, shots=shots))
    return sorted(draw_seeded(groups, trial=trial, shots=shots))


def validate(root: str | Path) -> list[str]:
    """One line per count that differs from the published one; none for the complete data set.

    Raises DataError when the data set cannot be read at all. The official permutations are not checked.
    """
    trained, queries = train(root), query(root, "all")
    groups = {mode: _groups(as_root(root), TEST_LIST, cameras) for mode, cameras in GALLERY_CAMERAS.items()}
    tested = identities(queries) | identities(every_image(groups["all"]))
    single = {mode: len(groups[mode]) for mode in groups}
    multi = {mode: sum(min(10, len(group)) for group in groups[mode].values()) for mode in groups}
    counts = (
        len(identities(trained)),
        count_images(trained, "visible"),
        count_images(trained, "infrared"),
        len(tested),
        len(tested & identities(trained)),
        len(queries),
        *(single["all"], single["indoor"]),
        *(multi["all"], multi["indoor"]),
    )
    return differences(dict(zip(PUBLISHED, counts, strict=True)), PUBLISHED)


def _camera(number: int) -> Camera:
    modality: Modality = "infrared" if number in QUERY_CAMERAS else "visible"
    return Camera(folder=f"cam{number}", camid=str(number), modality=modality)


def _groups(root: Path, listed_in: str, numbers: tuple[int, ...]) -> Groups:
    return read_groups(root, listed_in, map(_camera, numbers), known=map(_camera, range(1, 7)))


def _draw_official(root: Path, groups: Groups, mode: Mode, *, trial: int, shots: int) -> list[Record]:
    drawn, problems = draw_permuted(
        groups,
        read_permutations(root / PERMUTATIONS),
        pids=[f"{identity:04d}" for identity in read_identities(root, TEST_LIST)],
        camids=list(map(str, GALLERY_CAMERAS[mode])),
        trial=trial,
        shots=shots,
    )
    stop_for(problems, root / PERMUTATIONS, hint="permutations and images come from one release: unpack both anew")
    return drawn
