"""RegDB's splits on real Ray: the mean of several trainings, what a second call does, mistakes."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from icre.errors import ConfigError, StoppedError, TrainingError, UserError
from pipelines.data.prepared import open_data
from pipelines.evaluation import evaluate
from pipelines.evaluation.measure import choices
from pipelines.experiments import regdb, runner
from pipelines.runs.run import Run
from pipelines.runtime.command import run_app
from pipelines.storage import Storage
from pipelines.training import execution
from tests.conftest import Recipes
from tests.icre.data.regdb_tree import build_regdb, half
from tests.training import execute_here

pytestmark = pytest.mark.timeout(300)

DIRECTIONS = ("visible_to_infrared", "infrared_to_visible")
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RegDB of 12 people in random pixels."""
    folder = tmp_path_factory.mktemp("RegDB")
    drawn = np.random.default_rng(0)
    build_regdb(folder, lambda path: Image.fromarray(drawn.integers(0, 256, (64, 32, 3), np.uint8)).save(path))
    return folder


@pytest.fixture
def recipe(recipes: Recipes, root: Path) -> Make:
    own = [f"data.root={root}", "data.source=regdb", "data.split={val: 0.3, test: 0, file: null}"]
    short = [
        "data.split.seed=6",
        "train.epochs=1",
        "batch.identities=2",
        "train.steps_per_epoch=2",
        "evaluation={protocol: regdb}",
        "data.name=regdb",
    ]
    return lambda *overrides: recipes(*own, *short, *overrides)


def rows(markdown: str) -> dict[str, list[str]]:
    """Cells of a table's lines by the first one."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


def checkpoints(storage: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(storage, "runs").rglob("checkpoints/**/*") if path.is_file()}


@pytest.mark.usefixtures("ray_cluster")
def test_the_table_is_the_mean_over_the_splits_and_a_second_call_trains_nothing(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "execute", execute_here)
    one = recipe()
    splits = regdb.plan(one, [2, 1, 2])
    folder = Storage(tmp_path / "table")
    markdown = regdb.run(splits, folder)

    tested = {}
    for trial in (1, 2):
        data = open_data(splits[trial - 1].recipe)
        people = {
            part: {int(pid) for pid in data.labels["identity"].take(data.rows_of(part)).to_pylist()}
            for part in ("train", "val", "test")
        }
        assert people["train"] | people["val"] == set(half("train", trial))
        assert {int(pid) for pid in data.classes} == people["train"]
        tested[trial] = people["test"]
        assert tested[trial] == set(half("test", trial))
    assert tested[1] != tested[2]

    evaluated = [(split.run.location / "eval" / "best-regdb.json").read_json() for split in splits]
    assert [result["data"]["identities"] for result in evaluated] == [6, 6]
    found = rows(markdown)
    for column, (direction, metric) in enumerate((d, m) for d in DIRECTIONS for m in regdb.METRICS):
        values = [100 * result["directions"][direction]["mean"][metric] for result in evaluated]
        assert [found[str(trial)][column] for trial in (1, 2)] == [f"{value:.1f}" for value in values]
        expected = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
        assert found["mean of 2"][column] == expected
        written = (folder / "results.json").read_json()["over_splits"][direction][metric]
        assert [100 * written["mean"], 100 * written["std"]] == pytest.approx(
            [statistics.mean(values), statistics.stdev(values)]
        )
    # Every image of the other modality is in the gallery: 6 people, 3 images each.
    assert all(result["directions"][d]["queries"] == 18 for result in evaluated for d in DIRECTIONS)
    assert (folder / "table.md").read_text() == markdown + "\n"

    before = checkpoints(one.storage)
    assert len({path.parent for path in before}) >= 4
    assert regdb.run(regdb.plan(one, [1, 2]), folder) == markdown
    assert checkpoints(one.storage) == before

    path = splits[0].run.location / "eval" / "best-regdb.json"
    path.write_json(path.read_json() | {"protocol": path.read_json()["protocol"] | {"shots": 1}})
    assert rows(regdb.run(splits[:1], folder))["1"] == found["1"]
    assert path.read_json()["protocol"] == choices(splits[0].recipe)

    with pytest.raises(UserError, match="settings: optimizer"):
        regdb.run(regdb.plan(recipe("optimizer.lr=0.5"), [1]), folder)


def test_an_evaluation_from_the_middle_of_a_training_is_not_its_result(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (split,) = regdb.plan(recipe(), [3])
    run = split.run
    (run.location / "manifest.json").write_json({})
    run.write_status("stopped")
    run.checkpoints.point("best", "step-00000004")
    asked = choices(split.recipe)
    early = {"checkpoint": {"step": 4}, "protocol": asked}
    (run.location / "eval" / "best-regdb.json").write_json(early)

    def finish(unfinished: Run) -> None:
        unfinished.checkpoints.point("best", "step-00000006")
        unfinished.write_status("finished")

    def evaluated(run: Run, _: object, name: str) -> dict[str, Any]:
        result = {"checkpoint": {"step": 6}, "protocol": asked}
        (run.location / "eval" / f"{name}-regdb.json").write_json(result)
        return result

    monkeypatch.setattr(execution, "execute", finish)
    monkeypatch.setattr(evaluate, "evaluate", evaluated)
    assert runner.result_of(run, split.recipe)["checkpoint"] == {"step": 6}
    monkeypatch.delattr(execution, "execute")
    monkeypatch.delattr(evaluate, "evaluate")
    assert runner.result_of(run, split.recipe)["checkpoint"] == {"step": 6}


def test_a_failed_training_is_a_row_and_a_stopped_one_ends_the_command(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = regdb.plan(recipe("data.root=null"), [1, 2, 3])
    result = {
        "checkpoint": {"name": "best", "step": 2, "sha256": "0"},
        "data": {"name": "regdb", "split": "test", "images": 36, "identities": 6, "hash": "0"},
        "protocol": {"name": "folder", "trials": 1},
        "synthetic": False,
        "directions": {
            direction: {"mean": dict.fromkeys(regdb.METRICS, 0.25), "queries": 18, "skipped": 0, "ranked": ["many"]}
            for direction in DIRECTIONS
        },
    }
    outcomes: dict[str, Any] = {"icre-trial1": result, "icre-trial2": TrainingError("lost"), "icre-trial3": result}

    def result_of(run: Run, _: object) -> Any:
        outcome = outcomes[run.name]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(regdb, "open_data", lambda _: None)
    monkeypatch.setattr(runner, "result_of", result_of)
    folder = Storage(tmp_path / "table")
    markdown = regdb.run(splits, folder)
    found = rows(markdown)
    assert set(found["2 (failed)"]) == {"-"} and found["mean of 2"][0] == "25.0 ± 0.0"
    assert "icre-trial2 failed: lost" in markdown
    written = (folder / "results.json").read_json()
    assert [split["failure"] for split in written["splits"]] == [None, "lost", None]
    assert "ranked" not in json.dumps(written)

    outcomes["icre-trial2"] = StoppedError("asked to stop")
    with pytest.raises(StoppedError):
        regdb.run(splits, folder)
    assert list(rows((folder / "table.md").read_text())) == ["Split", "---", "1", "mean of 1"]


def test_what_is_no_regdb_recipe_is_refused(recipe: Make) -> None:
    with pytest.raises(ConfigError, match=r"data\.source=sysu") as caught:
        regdb.plan(recipe("data.source=sysu"), [1])
    assert caught.value.hint
    with pytest.raises(ConfigError, match=r"--trials \[0, 11\]"):
        regdb.plan(recipe(), [11, 0, 4])
    with pytest.raises(ConfigError, match=r"data\.trial=3") as caught:
        regdb.plan(recipe("data.trial=3"), [1])
    assert "--trials 3" in caught.value.hint


def test_a_dry_run_counts_every_split_and_writes_nothing(
    recipe: Make, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.cli import app

    file = tmp_path / "regdb.yaml"
    file.write_text(recipe("name=mine").to_yaml())
    before = set(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["icre", "regdb", "--config", str(file), "--dry-run"])
    with pytest.raises(SystemExit) as end:
        run_app(app)
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert [line.partition(" ")[0] for line in out.splitlines() if line.startswith("mine-trial")] == [
        f"mine-trial{trial}" for trial in range(1, 11)
    ]
    assert out.count("4 train, 2 val, 6 test identities") == 10
    assert set(tmp_path.rglob("*")) == before
