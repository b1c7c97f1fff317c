"""LLCM: training images by the lists ``idx/train_{vis,nir}.txt``, test images by identity and camera folder.

- ``{vis,nir}/<id:04d>/<id:04d>_c<camera:02d>_<anything>.jpg``, one line ``<path> <label>`` each;
- ``test_{vis,nir}/cam<1..9>/<id:04d>/<file>``, identities in ``idx/test_id.txt``; the infrared camera 3 has no images.

Functions take the folder that contains ``vis`` and ``idx`` and return sorted records, whose order labels identities.
"""

from __future__ import annotations

import re
from pathlib import Path

from icre.data.records import MODALITIES, Modality, Record
from icre.data.sources.cameras import Camera, Groups, draw_seeded, every_image, read_groups
from icre.data.sources.checks import check_choice, count_images, differences, identities
from icre.data.sources.tree import as_root, read_records

TRIALS = range(10)
TEST_LIST = "idx/test_id.txt"

PUBLISHED = {
    "training identities": 713,
    "visible training images": 16_946,
    "infrared training images": 13_975,
    "test identities": 351,
    "identities in both training and test": 0,
    "visible test images": 8_680,
    "infrared test images": 7_166,
}

_NAMES: dict[Modality, str] = {"visible": "vis", "infrared": "nir"}
_NUMBERS: dict[Modality, tuple[int, ...]] = {
    "visible": (1, 2, 3, 4, 5, 6, 7, 8, 9),
    "infrared": (1, 2, 4, 5, 6, 7, 8, 9),
}
_TEST_CAMERAS: dict[Modality, list[Camera]] = {
    modality: [Camera(f"test_{_NAMES[modality]}/cam{number}", str(number), modality) for number in _NUMBERS[modality]]
    for modality in MODALITIES
}


def train(root: str | Path) -> list[Record]:
    """The images of ``idx/train_vis.txt`` and ``idx/train_nir.txt``.

    Raises DataError when a list is unusable or one of its images is missing.
    """
    folder = as_root(root)
    return sorted(record for modality in MODALITIES for record in _read_train(folder, modality))


def query(root: str | Path, modality: Modality) -> list[Record]:
    """Every test image of ``modality``.

    Raises DataError when the list or the tree is unusable, ProtocolError for an invalid ``modality``.
    """
    return every_image(_test_groups(root, modality))


def gallery(root: str | Path, modality: Modality, trial: int) -> list[Record]:
    """One image of ``modality`` of each test identity in each camera, drawn for one trial.

    It is the gallery of ``query`` in the other modality. ``random.seed(trial)``, then ``random.choice`` of the sorted
    files, identities ascending and cameras in order, as in DEEN. Since June 2023 the public test script reverses the
    visible-to-infrared direction: this draw of infrared images is the query, all visible images are the gallery.

    trial: 0 to 9. Raises DataError when the list or the tree is unusable, ProtocolError for an invalid argument.
    """
    check_choice("trial", trial, TRIALS)
    return sorted(draw_seeded(_test_groups(root, modality), trial=trial, shots=1))


def validate(root: str | Path) -> list[str]:
    """One line per count that differs from the published one; none for the complete data set.

    Raises DataError when the data set cannot be read at all.
    """
    trained = train(root)
    tested = [record for modality in MODALITIES for record in query(root, modality)]
    counts = (
        len(identities(trained)),
        count_images(trained, "visible"),
        count_images(trained, "infrared"),
        len(identities(tested)),
        len(identities(trained) & identities(tested)),
        count_images(tested, "visible"),
        count_images(tested, "infrared"),
    )
    return differences(dict(zip(PUBLISHED, counts, strict=True)), PUBLISHED)


def _read_train(root: Path, modality: Modality) -> list[Record]:
    name = _NAMES[modality]
    pattern = re.compile(rf"{name}/(?P<pid>[0-9]+)/(?P=pid)_c(?P<camera>[0-9]{{1,9}})_[^/]+\.jpg")

    def parse(path: str) -> Record | None:
        match = pattern.fullmatch(path)
        # The list has 06 where the test folders have cam6.
        return Record(match["pid"], modality, str(int(match["camera"])), path) if match else None

    return read_records(
        root, f"idx/train_{name}.txt", parse, layout=f"{name}/<identity>/<identity>_c<camera>_<...>.jpg"
    )


def _test_groups(root: str | Path, modality: Modality) -> Groups:
    check_choice("modality", modality, MODALITIES)
    known = [camera for cameras in _TEST_CAMERAS.values() for camera in cameras]
    return read_groups(as_root(root), TEST_LIST, _TEST_CAMERAS[modality], known=known)
