"""RegDB's ten splits on random pixels. Two processes, ten trainings of one step."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.walks.commands import documented
from tests.walks.conftest import Folders
from tests.walks.walking import contents, table, write_recipes

pytestmark = pytest.mark.timeout(1800)

PEOPLE = range(1, 9)
FOLDERS = {"visible": "Visible", "infrared": "Thermal"}


def build_regdb(root: Path) -> None:
    """Eight people, two images a modality, ten splits into halves, laid out as the release is."""
    drawn = np.random.default_rng(0)
    (root / "idx").mkdir(parents=True)
    for modality, folder in FOLDERS.items():
        names = {
            person: [f"{folder}/{person}/male_cam2_{modality[0]}_{person:05d}_{number}.bmp" for number in range(2)]
            for person in PEOPLE
        }
        for paths in names.values():
            for path in paths:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(drawn.integers(0, 256, (64, 32, 3), np.uint8)).save(root / path)
        for trial in range(1, 11):
            turned = [*PEOPLE[trial % 8 :], *PEOPLE[: trial % 8]]
            for part, people in (("train", turned[::2]), ("test", turned[1::2])):
                lines = [f"{path} {label}" for label, person in enumerate(people) for path in names[person]]
                (root / f"idx/{part}_{folder.lower()}_{trial}.txt").write_text("\n".join(lines) + "\n")


def test_ten_splits_and_their_mean(folders: Folders, running_ray: dict[str, str]) -> None:
    """A row a split and the mean, which is that of the rows; a second call trains nothing."""
    folder = folders("regdb").on(running_ray)
    write_recipes(folder.path)
    build_regdb(folder / "RegDB")
    command = documented(
        "icre regdb --config configs/regdb-sgd.yaml data.root=/data/RegDB", {"data.root=/data/RegDB": "data.root=RegDB"}
    )
    told = folder.run(*command)
    rows = table(told.out)
    splits = [rows[str(number)] for number in range(1, 11)]
    means = rows["mean of 10"]
    for column, mean in enumerate(means):
        expected = statistics.mean(float(row[column]) for row in splits)
        assert float(mean.partition(" ")[0]) == pytest.approx(expected, abs=0.11)
    runs = folder.runs()
    assert len(runs) == 10
    assert all(folder.training(run).steps == [1] and folder.training(run).state == "finished" for run in runs)

    before = contents(folder / "storage/runs")
    again = table(folder.run(*command, "--trials", "1", "--trials", "7").out)
    assert [again[number] for number in ("1", "7")] == [rows[number] for number in ("1", "7")]
    assert contents(folder / "storage/runs") == before
