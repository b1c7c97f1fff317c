"""What ``prepare`` makes of the benchmark layouts, on small trees of empty files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from icre import config
from icre.errors import ConfigError, DataError
from pipelines.data.catalog import Survey, survey

Build = Callable[[Path], None]


def touch(root: Path, path: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).touch()


def build_sysu(root: Path) -> None:
    """Identities 1-4 train, 5 is in the val list, 6-7 test; camera 3 lacks identity 7."""
    for pid in range(1, 8):
        for cam in range(1, 7):
            if (pid, cam) != (7, 3):
                touch(root, f"cam{cam}/{pid:04d}/0001.jpg")
    (root / "exp").mkdir()
    for name, ids in {"train": "1,2,3,4", "val": "5", "test": "6,7"}.items():
        (root / f"exp/{name}_id.txt").write_text(ids)


def build_regdb(root: Path) -> None:
    """Ten splits of four identities: in split t, identities t and t + 1 train, 20 and 21 test."""
    (root / "idx").mkdir()
    for trial in range(1, 11):
        for folder, modality in (("Visible", "visible"), ("Thermal", "thermal")):
            for name, pids in {"train": (trial, trial + 1), "test": (20, 21)}.items():
                paths = [f"{folder}/{pid}/{n}.bmp" for pid in pids for n in (1, 2)]
                for path in paths:
                    touch(root, path)
                lines = [f"{path} {path.split('/')[1]}" for path in paths]
                (root / f"idx/{name}_{modality}_{trial}.txt").write_text("\n".join(lines))


def build_llcm(root: Path) -> None:
    """Identities 1-3 train, 8 and 9 test."""
    (root / "idx").mkdir()
    for name in ("vis", "nir"):
        paths = [f"{name}/{pid:04d}/{pid:04d}_c0{cam}_s1_f1_{name}.jpg" for pid in (1, 2, 3) for cam in (1, 4)]
        for path in paths:
            touch(root, path)
        (root / f"idx/train_{name}.txt").write_text("\n".join(f"{p} {p.split('/')[1]}" for p in paths))
        for pid in (8, 9):
            touch(root, f"test_{name}/cam5/{pid:04d}/{pid:04d}_c05_s1_f1_{name}.jpg")
    (root / "idx/test_id.txt").write_text("8,9")


def surveyed(root: Path, build: Build, source: str, *overrides: str) -> Survey:
    root.mkdir(exist_ok=True)
    if not any(root.iterdir()):
        build(root)
    recipe = config.load_recipe(None, [f"data.source={source}", f"data.root={root}", "data.split.val=0", *overrides])
    return survey(recipe)


def test_sysu_trains_on_both_lists_and_tests_on_the_third(tmp_path: Path) -> None:
    found = surveyed(tmp_path / "cam9 data", build_sysu, "sysu")
    splits = {int(pid): split for pid, split in found.split_of.items()}
    assert splits == {**dict.fromkeys(range(1, 6), "train"), 6: "test", 7: "test"}
    assert len(found.records) == 7 * 6 - 1
    counts = found.counts()
    assert (counts["train"]["visible"], counts["train"]["infrared"]) == (20, 10)
    assert (counts["test"]["visible"], counts["test"]["infrared"]) == (8, 3)
    assert counts["test"]["cameras"] == {"visible": ["1", "2", "4", "5"], "infrared": ["3", "6"]}
    assert any("395" in line for line in found.differences)


def test_regdb_takes_the_split_that_is_asked_for(tmp_path: Path) -> None:
    for trial in (1, 4):
        found = surveyed(tmp_path / "regdb", build_regdb, "regdb", f"data.trial={trial}")
        trained = {int(pid) for pid, split in found.split_of.items() if split == "train"}
        assert trained == {trial, trial + 1}
        assert {int(r.pid) for r in found.records} == {trial, trial + 1, 20, 21}
        assert found.counts()["train"]["visible"] == found.counts()["train"]["infrared"] == 4


def test_llcm_training_images_come_from_its_lists_and_test_images_from_its_folders(tmp_path: Path) -> None:
    found = surveyed(tmp_path / "llcm", build_llcm, "llcm")
    assert {int(pid): split for pid, split in found.split_of.items()} == {
        **dict.fromkeys((1, 2, 3), "train"),
        8: "test",
        9: "test",
    }
    assert found.counts()["train"]["cameras"]["visible"] == ["1", "4"]
    assert len(found.records) == 12 + 4


@pytest.mark.parametrize(("source", "build"), [("sysu", build_sysu), ("regdb", build_regdb), ("llcm", build_llcm)])
def test_a_share_of_the_training_identities_validates_and_no_test_identity_does(
    tmp_path: Path, source: str, build: Build
) -> None:
    without = surveyed(tmp_path / "data", build, source)
    tested = {pid for pid, split in without.split_of.items() if split == "test"}
    drawn = set()
    for seed in range(8):
        found = dict.fromkeys(without.split_of, "train")
        try:
            found |= surveyed(
                tmp_path / "data", build, source, "data.split.val=0.4", f"data.split.seed={seed}"
            ).split_of
        except DataError as error:
            assert "none of them in the train split" in error.message  # so few identities that all may be drawn
            continue
        assert {pid for pid, split in found.items() if split == "test"} == tested
        drawn |= {pid for pid, split in found.items() if split == "val"}
    assert drawn and not drawn & tested


def test_what_cannot_be_is_refused_with_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "sysu"
    surveyed(root, build_sysu, "sysu")
    (root / "exp/test_id.txt").write_text("5,6,7")
    with pytest.raises(DataError, match="both trained and tested on: 0005"):
        surveyed(root, build_sysu, "sysu")
    recipe = config.load_recipe(None, ["data.source=sysu", "data.root=s3://bucket/sysu"])
    with pytest.raises(DataError, match="s3://bucket/sysu"):
        survey(recipe)
    with pytest.raises(ConfigError) as caught:
        config.load_recipe(None, ["data.source=llcm", "data.split.file=split.json", "data.trial=2"])
    assert "data.split.file" in caught.value.message and "data.trial=2" in caught.value.message
