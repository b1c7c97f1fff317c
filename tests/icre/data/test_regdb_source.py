from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from icre.data.records import MODALITIES, Modality, Record
from icre.data.sources import regdb
from icre.errors import ProtocolError
from tests.icre.data.image_trees import add_junk, assert_stops, at_awkward_roots
from tests.icre.data.regdb_tree import build_regdb, half, images


def build(root: Path) -> None:
    build_regdb(root, lambda path: path.touch())
    add_junk(root)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree that no test changes."""
    root = tmp_path_factory.mktemp("regdb")
    build(root)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    build(tmp_path)
    return tmp_path


def expected(part: str, trial: int, modality: Modality) -> list[Record]:
    camid = {"visible": "1", "infrared": "2"}[modality]
    return sorted(
        Record(str(pid), modality, camid, path) for pid in half(part, trial) for path in images(modality, pid)
    )


def test_every_split(whole: Path) -> None:
    for trial in range(1, 11):
        for modality in MODALITIES:
            assert regdb.train(whole, trial, modality) == expected("train", trial, modality)
            assert regdb.test(whole, trial, modality) == expected("test", trial, modality)


def test_the_roots_own_name_changes_nothing(tmp_path: Path) -> None:
    for root in at_awkward_roots(tmp_path, build):
        assert regdb.test(root, 3, "infrared") == expected("test", 3, "infrared")


def test_lists_with_other_line_ends(root: Path) -> None:
    path = root / "idx/train_visible_1.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b" \r\n\r\n"))
    assert regdb.train(root, 1, "visible") == expected("train", 1, "visible")


def test_all_mistakes_of_a_list_at_once(root: Path) -> None:
    (root / images("visible", 2)[0]).unlink()
    lines = [
        f"{images('visible', 2)[0]} 0",
        "Visible/2/no label.bmp",
        f"{images('infrared', 2)[0]} 0",
        f"{images('visible', 2)[1]} 0",
        f"{images('visible', 2)[1]} 0",
    ]
    name = "idx/train_visible_7.txt"
    (root / name).write_text("\n".join(lines))
    parts = ["4 problem(s)", *(f"line {n}:" for n in (1, 2, 3, 5)), lines[1], lines[2], images("visible", 2)[0]]
    assert_stops(lambda: regdb.train(root, 7, "visible"), str(root / name), *parts)
    (root / name).write_text("\n".join(["Visible/3/../1/x.bmp 0", "/Visible/3/x.bmp 0", *["nothing"] * 6]))
    assert_stops(lambda: regdb.train(root, 7, "visible"), "8 problem(s)", "line 1: 'Vis", "line 2: '/Vis", "3 more")


@pytest.mark.parametrize(("pid", "label"), [(2, 1), (3, 0)])
def test_labels_that_contradict_the_paths(root: Path, pid: int, label: int) -> None:
    lines = [f"{images('visible', 2)[0]} 0", f"{images('visible', pid)[1]} {label}"]
    (root / "idx/test_visible_1.txt").write_text("\n".join(lines))
    assert_stops(lambda: regdb.test(root, 1, "visible"), "line 2:", f"identity {pid}", f"label {label}")


def test_a_missing_list_or_folder(root: Path) -> None:
    (root / "idx/test_thermal_10.txt").unlink()
    assert_stops(lambda: regdb.test(root, 10, "infrared"), str(root / "idx/test_thermal_10.txt"))
    (root / "Thermal").rename(root / "Other")
    assert_stops(lambda: regdb.train(root, 1, "infrared"), "idx/train_thermal_1.txt", "18 problem(s)")
    assert_stops(lambda: regdb.train(root / "idx/test_thermal_1.txt", 1, "infrared"), "test_thermal_1.txt")


def test_counts_are_compared_with_the_published_ones(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(regdb.validate(root)) == 10 * 2 * 2 * 2
    monkeypatch.setattr(regdb, "IDENTITIES", 6)
    monkeypatch.setattr(regdb, "IMAGES", 18)
    assert regdb.validate(root) == []
    path = root / "idx/test_thermal_4.txt"
    path.write_text(path.read_text().rpartition("Thermal")[0])
    (warning,) = regdb.validate(root)
    assert "4" in warning and "thermal" in warning and "17" in warning and "18" in warning
    path.write_text((root / "idx/train_thermal_4.txt").read_text())
    (warning,) = regdb.validate(root)
    assert "split 4" in warning and "6 found" in warning


@pytest.mark.parametrize(("trial", "modality"), [(0, "visible"), (11, "visible"), (1, "thermal")])
def test_arguments_outside_the_protocol(whole: Path, trial: int, modality: Any) -> None:
    with pytest.raises(ProtocolError):
        regdb.train(whole, trial, modality)
