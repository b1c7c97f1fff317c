"""RegDB: ``{Visible,Thermal}/<id>/*.bmp``, lists ``idx/{train,test}_{visible,thermal}_{1..10}.txt``.

Ten splits of the 412 identities into two halves, one model each. There are no cameras: the camera of a record is its
modality, ``1`` visible or ``2`` thermal, so a rule about equal cameras excludes nothing.
Functions take the folder that contains ``Visible`` and ``idx`` and return sorted records, whose order labels
identities.
"""

from __future__ import annotations

import re
from pathlib import Path

from icre.data.records import MODALITIES, Modality, Record
from icre.data.sources.checks import check_choice, differences, identities
from icre.data.sources.tree import as_root, read_records

TRIALS = range(1, 11)
IDENTITIES = 206
IMAGES = 2_060
"""Images per list: 10 of each identity."""

_NAMES: dict[Modality, str] = {"visible": "visible", "infrared": "thermal"}
_CAMIDS: dict[Modality, str] = {"visible": "1", "infrared": "2"}


def train(root: str | Path, trial: int, modality: Modality) -> list[Record]:
    """The images of ``idx/train_{visible,thermal}_{trial}.txt``; infrared is the thermal list.

    trial: 1 to 10. Raises DataError when the list is unusable or one of its images is missing, ProtocolError for an
    invalid argument.
    """
    return _read(root, "train", trial, modality)


def test(root: str | Path, trial: int, modality: Modality) -> list[Record]:
    """The images of ``idx/test_{visible,thermal}_{trial}.txt``, as :func:`train`. Query in one modality, gallery in
    the other, in both directions.
    """
    return _read(root, "test", trial, modality)


def validate(root: str | Path) -> list[str]:
    """One line per count of any split that differs from the published one; none for the complete data set.

    Raises DataError when a list is unusable or one of its images is missing.
    """
    found: dict[str, int] = {}
    published: dict[str, int] = {}
    for trial in TRIALS:
        people: dict[str, set[str]] = {"train": set(), "test": set()}
        for part, modality in ((part, modality) for part in people for modality in MODALITIES):
            records = _read(root, part, trial, modality)
            people[part] |= identities(records)
            name = f"split {trial}: {_NAMES[modality]} {part}"
            found |= {f"{name} identities": len(identities(records)), f"{name} images": len(records)}
            published |= {f"{name} identities": IDENTITIES, f"{name} images": IMAGES}
        name = f"split {trial}: identities in both train and test"
        found[name], published[name] = len(people["train"] & people["test"]), 0
    return differences(found, published)


def _read(root: str | Path, part: str, trial: int, modality: Modality) -> list[Record]:
    check_choice("trial", trial, TRIALS)
    check_choice("modality", modality, MODALITIES)
    name = _NAMES[modality]
    folder = name.capitalize()
    pattern = re.compile(rf"{folder}/(?P<pid>[0-9]+)/[^/]+\.bmp")

    def parse(path: str) -> Record | None:
        match = pattern.fullmatch(path)
        return Record(match["pid"], modality, _CAMIDS[modality], path) if match else None

    return read_records(
        as_root(root), f"idx/{part}_{name}_{trial}.txt", parse, layout=f"{folder}/<identity>/<file>.bmp"
    )
