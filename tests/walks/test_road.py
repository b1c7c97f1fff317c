"""The README's road by hand, and the numbers that it must end in. Ten processes, one training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.walks import pins
from tests.walks.conftest import Road
from tests.walks.walking import contents, table

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def pinned() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pins.FILE.read_text())
    return found


@pytest.fixture(scope="module")
def same_machine(road: Road, pinned: dict[str, Any]) -> bool:
    """Whether this processor sums as the one did on which the numbers were pinned."""
    return pins.fingerprint(road.folder) == pinned["fingerprint"]


def test_every_command_of_the_block_does_what_its_comment_says(road: Road) -> None:
    """Folders where the comments say they are, and where the last line of the output points to."""
    folder = road.folder
    assert Path(road["synthesize"].last_line) == folder / "storage/images/demo"
    assert len(list((folder / "storage/images/demo").rglob("*.jpg"))) == 160
    split = json.loads((folder / "storage/images/demo/split.json").read_text())
    counts = table(road["prepare"].out)
    for part, people in split.items():
        assert counts[part][:3] == [str(len(people)), str(4 * len(people)), str(4 * len(people))]
    assert (folder / "storage/datasets/demo/manifest.json").is_file()
    assert list((folder / "storage/datasets/demo").rglob("*.parquet"))
    with Image.open(folder / "people.png") as people:
        assert min(people.size) > 64
    assert Path(road["train"].last_line) == folder / "storage/runs/mine"


def test_the_run_folder_is_the_one_of_the_readme(road: Road) -> None:
    training = road.folder.training("mine")
    for name in ("config.yaml", "manifest.json", "metrics.prom"):
        assert (training.path / name).stat().st_size > 0
    assert training.state == "finished"
    assert training.steps == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in training.rows("validation")] == [3, 6]
    assert {path.name for path in (training.path / "checkpoints").iterdir()} >= {"last", "best"}
    assert list((training.path / "tensorboard").iterdir()) and list((training.path / "features").iterdir())


def test_both_networks_are_evaluated_and_the_table_says_what_the_files_say(road: Road) -> None:
    training, out = road.folder.training("mine"), road["evaluate"].out
    for checkpoint in ("best", "untrained"):
        for value in training.metrics(checkpoint).values():
            assert f"{100 * value:.1f} ±" in out


def test_the_report_is_one_page_that_needs_no_network(road: Road) -> None:
    page = Path(road["report"].last_line)
    assert page == road.folder / "storage/runs/mine/report/index.html"
    text = page.read_text()
    assert 'src="http' not in text and '<link rel="stylesheet"' not in text


def test_a_second_call_does_nothing(road: Road, running_ray: dict[str, str]) -> None:
    """Also where the verb is called as a module, as a job does."""
    folder = road.folder.on(running_ray)
    before = contents(folder / "storage/datasets"), contents(folder / "storage/images")
    told = folder.run("python", "-m", "pipelines.prepare", "--config", "configs/demo.yaml")
    assert (contents(folder / "storage/datasets"), contents(folder / "storage/images")) == before
    assert table(told.out) == table(road["prepare"].out)


def test_the_recipe_and_the_network_are_shown(road: Road) -> None:
    shown, model = road.folder.at_once(
        ["icre", "config", "show", "--config", "configs/demo.yaml", "loss.icg.weight=0.25"],
        ["icre", "model", "--config", "configs/demo.yaml", "--classes", "10", "--json"],
    )
    assert "weight: 0.25" in shown.out and "backbone: resnet18" in shown.out
    assert json.loads(model.out)


# The numbers. `python -m tests.walks.pins` writes them anew; a change that means to change none must not need it.


def test_the_weights_are_those_that_were_pinned(road: Road, pinned: dict[str, Any], same_machine: bool) -> None:
    if not same_machine:
        pytest.skip("this processor, or this torch, sums a plain computation otherwise than where they were pinned")
    assert pins.images(road.folder) == pinned["images"]
    assert road.folder.training("mine").weights == pinned["weights"]


def test_losses_and_metrics_are_those_that_were_pinned(road: Road, pinned: dict[str, Any], same_machine: bool) -> None:
    """Elsewhere within a tolerance: a loss by a thousandth, a metric by one of the 32 queries that decide it."""
    found = pins.numbers(road.folder)
    loss, metric = (1e-12, 1e-12) if same_machine else (1e-3, 1 / 32)
    assert found["losses"] == pytest.approx(pinned["losses"], rel=loss)
    for checkpoint in ("best", "untrained"):
        assert found[checkpoint] == pytest.approx(pinned[checkpoint], abs=metric)
