"""A week of retraining in small. Twelve processes, two trainings."""

from __future__ import annotations

import json
import shutil
from itertools import chain

import pytest
import yaml

from tests.walks.commands import documented
from tests.walks.conftest import Folders, Road
from tests.walks.walking import Ended, Folder, merged, table

pytestmark = pytest.mark.timeout(1800)

NIGHTLY = {
    "name": "nightly",
    "data": {"name": "nightly", "root": None, "synthetic": None},
    "optimizer": {"name": "adam", "lr": 1.0e-3, "backbone_lr": 1.0e-3},
    "train": {"epochs": 1, "steps_per_epoch": 40, "workers": 0},
    "evaluation": {"trials": 2, "workers": 0},
    # Few people: whether one night's model is better than the other's is not the question, that it is told is.
    "retrain": {"margin": 0.0, "confidence": 0.5, "floor": 1.0, "min_queries": 4, "resamples": 200},
}
TICK = "icre retrain --config configs/nightly.yaml data.root=/data/my-cameras storage=s3://my-bucket/icre"
SHOW = "icre registry show nightly storage=s3://my-bucket/icre"


class Week:
    """A folder with images of people who come in by and by, and what was called in it."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.people: dict[str, list[str]] = json.loads((folder / "everybody/split.json").read_text())

    def is_there(self, split: dict[str, list[str]]) -> None:
        """The image folder holds these people, and says who is for what."""
        root = self.folder / "my-cameras"
        for person in chain.from_iterable(split.values()):
            for modality in ("visible", "infrared"):
                if not (root / modality / person).exists():
                    shutil.copytree(self.folder / "everybody" / modality / person, root / modality / person)
        (root / "split.json").write_text(json.dumps(split))

    def night(self, name: str, code: int | None = 0) -> Ended:
        """The README's command, with the storage that nobody named."""
        words = documented(TICK, {"data.root=/data/my-cameras": "data.root=my-cameras"})
        return self.folder.run(*words[:-1], "--tick", name, "--exit-code", code=code)

    def serves(self) -> str:
        """The run whose weights serve, as the registry's last entry has it; it says that they are intact."""
        shown = self.folder.run(*documented(SHOW)[:-1])
        assert "intact" in shown.out
        entries = {name: cells for name, cells in table(shown.out).items() if name.isdigit()}
        assert len(entries) == len(list((self.folder / "storage/registry/nightly/history").glob("*.json")))
        return entries[str(len(entries))][3]


@pytest.fixture(scope="module")
def week(road: Road, folders: Folders, running_ray: dict[str, str]) -> Week:
    folder = folders("week").on(running_ray)
    shutil.copytree(road.folder / "storage/images/demo", folder / "everybody")
    (folder / "configs").mkdir()
    recipe = merged(yaml.safe_load((road.folder / "configs/demo.yaml").read_text()), NIGHTLY)
    (folder / "configs/nightly.yaml").write_text(yaml.safe_dump(recipe))
    return Week(folder)


def test_a_week(week: Week) -> None:
    """A first model, nothing new, new people, somebody rolls back, a person of the test list who would be learnt."""
    folder, people = week.folder, week.people
    first = {**people, "train": people["train"][:-2]}
    week.is_there(first)
    assert week.night("monday").last_line == "promoted"
    assert week.serves() == "nightly-tick-monday"

    assert week.night("tuesday", code=21).last_line == "nothing new"
    assert folder.runs() == {"nightly-tick-monday"}

    week.is_there(people)
    wednesday = week.night("wednesday", code=None)
    outcome = {0: "promoted", 20: "kept"}[wednesday.code]
    assert wednesday.last_line == outcome
    assert folder.runs() == {"nightly-tick-monday", "nightly-tick-wednesday"}
    assert folder.training("nightly-tick-wednesday").steps == list(range(1, 41))
    if outcome == "kept":
        promote = documented(
            "icre registry promote NAME --run R [--checkpoint best|last|step-…]",
            {"NAME": "nightly", "R": "nightly-tick-wednesday", "[--checkpoint": "--checkpoint"},
        )
        folder.run(*promote[:-1], "best")
    assert week.serves() == "nightly-tick-wednesday"

    rollback = documented("icre registry rollback NAME [--to ENTRY]", {"NAME": "nightly"})
    folder.run(*rollback[:-2])
    assert week.serves() == "nightly-tick-monday"

    leaked = people["test"][-1]
    week.is_there({**people, "train": [*people["train"], leaked], "test": people["test"][:-1]})
    refused = week.night("thursday", code=1)
    assert refused.last_line == "failed"
    assert refused.is_a_mistake_that_can_be_mended()
    assert folder.runs() == {"nightly-tick-monday", "nightly-tick-wednesday"}
    for night in ("monday", "wednesday"):
        assert "outcome" in (folder / f"storage/retraining/nightly/{night}/metrics.prom").read_text()
        assert (folder / f"storage/retraining/nightly/{night}/index.html").is_file()

    listed, shown, frozen = folder.at_once(
        documented("icre registry list"),
        documented("icre registry show NAME", {"NAME": "nightly"}),
        documented("icre registry freeze --config …", {"…": "configs/nightly.yaml"}),
    )
    assert table(listed.out)["nightly"][1] == "nightly-tick-monday"
    assert "nightly-tick-monday" in shown.out
    assert str(folder / "storage/registry/nightly/frozen") in frozen.out
