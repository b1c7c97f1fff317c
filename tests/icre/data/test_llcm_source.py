from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from icre.data.records import MODALITIES, Modality, Record
from icre.data.sources import llcm
from icre.errors import ProtocolError
from icre.evaluation.gallery_sampling import trials
from icre.evaluation.protocols import FIXED
from tests.icre.data.image_trees import add_junk, assert_stops, at_awkward_roots, touch

TRAIN, TEST = [1, 4, 713], [351, 3, 70, 1000]
SHORT: dict[Modality, str] = {"visible": "vis", "infrared": "nir"}
CAMERAS = {"visible": [1, 2, 3, 4, 5, 6, 7, 8, 9], "infrared": [1, 2, 4, 5, 6, 7, 8, 9]}
COUNTS = {
    (modality, pid, cam): (3 * pid + 5 * cam) % 6 + len(modality) % 3
    for modality in MODALITIES
    for pid in TRAIN + TEST
    for cam in CAMERAS[modality]
    if not (modality == "infrared" and pid == 70)  # An identity without infrared images.
}
COUNTS = {key: count for key, count in COUNTS.items() if count}


def file_name(modality: Modality, pid: int, cam: int, n: int) -> str:
    return f"{pid:04d}_c{cam:02d}_s{2 * n + 9}_f{11 - n}_{SHORT[modality]}.jpg"


def images(modality: Modality, pid: int, cam: int) -> list[str]:
    short = SHORT[modality]
    folder = f"{short}/{pid:04d}" if pid in TRAIN else f"test_{short}/cam{cam}/{pid:04d}"
    return sorted(f"{folder}/{file_name(modality, pid, cam, n)}" for n in range(COUNTS.get((modality, pid, cam), 0)))


def build(root: Path) -> None:
    touch(root, (path for modality, pid, cam in COUNTS for path in images(modality, pid, cam)))
    touch(root, ["test_vis/cam1/0400/0400_c01_s1_f1_vis.jpg", "idx/test_vis.txt"])
    (root / "test_nir/cam3").mkdir()
    (root / "idx/test_id.txt").write_text(",".join(map(str, TEST)))
    for modality, short in SHORT.items():
        listed = [(pid, p) for pid in reversed(TRAIN) for cam in CAMERAS[modality] for p in images(modality, pid, cam)]
        lines = [f"{path} {TRAIN.index(pid)}" for pid, path in listed]
        (root / f"idx/train_{short}.txt").write_text("\n".join(lines) + "\n")
    add_junk(root)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree that no test changes."""
    root = tmp_path_factory.mktemp("llcm")
    build(root)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    build(tmp_path)
    return tmp_path


def every(pids: list[int], modality: Modality) -> list[Record]:
    return sorted(
        Record(f"{pid:04d}", modality, str(cam), path)
        for pid in pids
        for cam in CAMERAS[modality]
        for path in images(modality, pid, cam)
    )


def test_train_and_query(whole: Path) -> None:
    assert llcm.train(whole) == sorted(every(TRAIN, "visible") + every(TRAIN, "infrared"))
    for modality in MODALITIES:
        assert llcm.query(whole, modality) == every(TEST, modality)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("trial", range(10))
def test_gallery(whole: Path, modality: Modality, trial: int) -> None:
    before = random.getstate()
    random.seed(trial)
    expected = []
    for pid in sorted(TEST):
        for cam in CAMERAS[modality]:
            if files := images(modality, pid, cam):
                expected.append(Record(f"{pid:04d}", modality, str(cam), random.choice(files)))
    random.setstate(before)
    assert llcm.gallery(whole, modality, trial) == sorted(expected)
    assert random.getstate() == before


def test_the_roots_own_name_changes_nothing(tmp_path: Path) -> None:
    for root in at_awkward_roots(tmp_path, build):
        assert llcm.train(root) == sorted(every(TRAIN, "visible") + every(TRAIN, "infrared"))
        assert llcm.query(root, "visible") == every(TEST, "visible")
        assert llcm.gallery(root, "infrared", 2) == llcm.gallery(tmp_path / "plain", "infrared", 2)


def test_infrared_images_of_camera_3_are_no_part_of_the_protocol(root: Path) -> None:
    touch(root, ["test_nir/cam3/0003/0003_c03_s1_f1_nir.jpg"])
    assert llcm.query(root, "infrared") == every(TEST, "infrared")


@pytest.mark.parametrize(
    "line",
    [
        "vis/0001/0004_c01_s1_f1_vis.jpg 0",
        "vis/0001/0001_s1_f1_vis.jpg 0",
        "vis/0001/0001_cam1_s1_f1_vis.jpg 0",
        "vis/0001/0001_c01_s1_f1_vis.png 0",
        "vis/0001/0001_c01_s1_f1_vis.jpg",
        "vis/0001/0001_c01_s1_f1_vis.jpg one",
        "nir/0001/0001_c01_s9_f11_nir.jpg 0",
        "vis/0001/0001_c01_s77_f1_vis.jpg 0",
    ],
)
def test_a_wrong_line(root: Path, line: str) -> None:
    if "_s77_" not in line:
        touch(root, [line.split(" ")[0]])
    path = root / "idx/train_vis.txt"
    path.write_text(path.read_text() + line)
    number = len(path.read_text().splitlines())
    assert_stops(lambda: llcm.train(root), str(path), "1 problem(s)", f"line {number}:", line.split(" ")[0])


def test_what_is_missing_is_named(root: Path) -> None:
    (root / "idx/test_id.txt").write_text("3,70,71")
    for modality in MODALITIES:
        assert_stops(lambda m=modality: llcm.query(root, m), "idx/test_id.txt", "1 problem(s)", "identity 71")  # type: ignore[misc]
    for name in ("idx/test_id.txt", "idx/train_nir.txt"):
        (root / name).unlink()
        call = llcm.train if "train" in name else lambda r: llcm.query(r, "infrared")
        assert_stops(lambda c=call: c(root), str(root / name))  # type: ignore[misc]


def test_counts_are_compared_with_the_published_ones(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(llcm.validate(root)) == 6
    visible, infrared = (len(every(TEST, modality)) for modality in MODALITIES)
    counts = [3, len(every(TRAIN, "visible")), len(every(TRAIN, "infrared")), 4, 0, visible, infrared]
    monkeypatch.setattr(llcm, "PUBLISHED", dict(zip(llcm.PUBLISHED, counts, strict=True)))
    assert llcm.validate(root) == []
    (root / every(TEST, "infrared")[0].path).unlink()
    (warning,) = llcm.validate(root)
    assert "infrared test" in warning and str(infrared) in warning and str(infrared - 1) in warning


@pytest.mark.parametrize(("modality", "trial"), [("nir", 0), ("visible", 10), ("visible", -1)])
def test_arguments_outside_the_protocol(whole: Path, modality: Any, trial: int) -> None:
    with pytest.raises(ProtocolError):
        llcm.gallery(whole, modality, trial)


def test_the_protocols_draw_the_same(whole: Path) -> None:
    records = [record for modality in reversed(MODALITIES) for record in reversed(llcm.query(whole, modality))]
    forms = {"llcm": "gallery", "llcm-drawn-queries": "query"}
    for name, drawn_side in forms.items():
        for direction in FIXED[name].directions.values():
            drawn, undrawn = (
                (direction.query, direction.gallery) if drawn_side == "query" else (direction.gallery, direction.query)
            )
            for trial, sides in enumerate(trials(records, FIXED[name], direction)):
                found = dict(zip(("query", "gallery"), ([records[row] for row in rows] for rows in sides), strict=True))
                other = "gallery" if drawn_side == "query" else "query"
                assert found[drawn_side] == llcm.gallery(whole, drawn, trial)
                assert sorted(found[other]) == llcm.query(whole, undrawn)
    assert [d.drawn for d in FIXED["llcm-drawn-queries"].directions.values()] == ["query"]
    assert FIXED["llcm-drawn-queries"].directions["visible_to_infrared"].query == "infrared"
