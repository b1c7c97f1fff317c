"""Somebody's own images, and three mistakes. Five processes, one training with two workers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.walks.commands import documented
from tests.walks.conftest import Folders
from tests.walks.walking import Folder, table

pytestmark = pytest.mark.timeout(1800)

SIZE = ["data.height=64", "data.width=32"]
SMALLER = [
    "model.backbone=resnet18", "model.dim=32", "model.heads=4", "batch.identities=4", "batch.visible=2",
    "batch.infrared=2", "schedule.warmup_epochs=0", "train.epochs=1", "train.steps_per_epoch=2",
    "train.cpus_per_worker=0.5", "train.loaders=1", "train.loader_cpus=0.25",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(folders: Folders, running_ray: dict[str, str]) -> Folder:
    """An empty folder but for images of twenty identities: random pixels, two a camera."""
    found, drawn = folders("own-images").on(running_ray), np.random.default_rng(0)
    for person in range(1, 21):
        for modality, cameras in {"visible": (1, 2), "infrared": (3,)}.items():
            place = found / f"my-cameras/{modality}/{person:04d}"
            place.mkdir(parents=True)
            for camera in cameras:
                for number in range(2):
                    pixels = drawn.integers(0, 256, (96, 48, 3), np.uint8)
                    Image.fromarray(pixels).save(place / f"{camera}_{number}.jpg")
    return found


def test_two_commands_from_images_to_a_trained_network(folder: Folder) -> None:
    """The README's two, with the settings that make them small."""
    prepare = documented(
        "icre prepare data.root=/data/my-cameras data.name=my-cameras data.split.test=0.5 data.split.val=0.1",
        {"data.root=/data/my-cameras": "data.root=my-cameras"},
    )
    counts = table(folder.run(*prepare, *SIZE).out)
    parts = [counts[part] for part in ("train", "val", "test") if part in counts]
    assert [sum(int(cells[column]) for cells in parts) for column in range(3)] == [20, 80, 40]
    assert counts["train"][3:] == ["1, 2", "3"]
    told = folder.run(*documented("icre train data.name=my-cameras train.workers=2"), *SIZE, *SMALLER)
    (run,) = folder.runs()
    assert told.last_line == str(folder / f"storage/runs/{run}")
    assert folder.training(run).state == "finished" and folder.training(run).steps == [1, 2]
    assert "data.name=my-cameras" in (folder / f"storage/runs/{run}/manifest.json").read_text()


def test_mistakes_are_told_in_two_lines_and_exit_code_2(folder: Folder) -> None:
    """A misspelt key, a folder that is not there, a run that is not there."""
    before = folder.runs()
    ends = folder.at_once(
        ["icre", "train", "data.nmae=my-cameras"],
        ["icre", "prepare", "data.root=their-cameras", "data.name=their-cameras"],
        ["icre", "evaluate", "--run", "nobody"],
        code=2,
    )
    for ended, named in zip(ends, ("data.nmae", "their-cameras", "nobody"), strict=True):
        assert ended.is_a_mistake_that_can_be_mended(), ended.err
        assert named in ended.err and ended.out == ""
    assert folder.runs() == before
