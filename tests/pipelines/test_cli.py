"""The command line as a stranger uses it: mistakes end in two lines and exit code 2, and write nothing."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from icre.errors import ConfigError, StorageError
from pipelines.cli import app
from pipelines.data import ingest
from pipelines.runtime.command import run_app

ROOT = Path(__file__).resolve().parents[2]


def icre(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command, in this process."""
    before = sys.argv
    sys.argv = ["icre", *arguments]
    try:
        run_app(app)
    except SystemExit as end:
        code = int(end.code or 0)
    else:
        code = 0
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return code, out, err


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_config_show_prints_what_a_verb_would_use(capsys: Any) -> None:
    demo = str(ROOT / "configs" / "demo.yaml")
    code, out, _ = icre(capsys, "config", "show", "--config", demo, "train.epochs=3", "schedule.milestones=[2]")
    values = yaml.safe_load(out)
    assert code == 0
    assert (values["train"]["epochs"], values["schedule"]["milestones"]) == (3, [2.0])
    assert values["model"]["backbone"] == "resnet18"


@pytest.mark.parametrize("verb", ["prepare", "train", "evaluate", "report", "synthesize", "demo"])
def test_every_verb_refuses_a_wrong_recipe_with_all_problems(verb: str, capsys: Any, tmp_path: Path) -> None:
    code, out, err = icre(capsys, verb, f"storage={tmp_path}", "train.epohcs=3", "model.dim=7", "batch.identities=many")
    assert code == 2 and out == ""
    assert err.startswith("error:") and "hint:" in err and "Traceback" not in err
    assert "did you mean 'epochs'" in err and "model.dim=7" in err and "batch.identities='many'" in err
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--config", "configs/demmo.yaml"], "configs/demmo.yaml"),
        (["train", "data.name=absent"], "absent"),
        (["evaluate"], "latest"),
        (["report", "--run", "nothing"], "nothing"),
        (["prepare"], "data.root"),
        (["prepare", "data.root=no/such/folder"], "no/such/folder"),
        (["synthesize"], "data.synthetic"),
        (["train", "--epochs", "3"], "--epochs"),
        (["trian"], "trian"),
    ],
)
def test_mistakes_name_what_is_wrong(arguments: list[str], named: str, capsys: Any, tmp_path: Path) -> None:
    storage = f"storage={tmp_path / 'storage'}"
    code, out, err = icre(capsys, *arguments, storage)
    assert code == 2 and out == ""
    assert named in err and "Traceback" not in err
    assert files(tmp_path) == []


def test_a_recipe_file_that_is_not_yaml_is_named(capsys: Any, tmp_path: Path) -> None:
    for content in ("train: [unclosed", "- a list", "train: {epochs: 3"):
        (tmp_path / "bad.yaml").write_text(content)
        code, _, err = icre(capsys, "config", "show", "--config", str(tmp_path / "bad.yaml"))
        assert code == 2 and "bad.yaml" in err


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(120)
def test_dry_runs_show_counts_steps_and_paths_and_write_nothing(capsys: Any, recipes: Any, tmp_path: Path) -> None:
    recipe = recipes("train.workers=2")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    code, out, _ = icre(capsys, "prepare", "--dry-run", "--config", str(path))
    assert code == 0 and "| train |" in out and "datasets/people" in out
    assert not Path(recipe.storage).exists()
    ingest.prepare(recipe)
    before = {p: p.stat().st_mtime_ns for p in files(Path(recipe.storage))}
    code, out, _ = icre(capsys, "train", "--dry-run", "--config", str(path), "--run", "mine")
    assert code == 0 and "2 epochs x 6 = 12" in out and "runs/mine" in out
    assert {p: p.stat().st_mtime_ns for p in files(Path(recipe.storage))} == before


def test_errors_survive_the_way_from_a_worker_to_the_driver() -> None:
    import pickle

    for error in (ConfigError("what", hint="how"), StorageError("where", hint="so")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.message, copy.hint, copy.exit_code) == (type(error), error.message, error.hint, 2)


@pytest.mark.parametrize("verb", ["prepare", "train", "evaluate", "report", "synthesize", "demo"])
def test_every_verb_is_a_module_too(verb: str) -> None:
    assert callable(importlib.import_module(f"pipelines.{verb}").command)


def test_a_module_runs_as_a_process_with_the_same_exit_code(tmp_path: Path) -> None:
    """One real process, for the entry point and the exit code that a job scheduler sees."""
    command = [sys.executable, "-m", "pipelines.train", f"storage={tmp_path}", "data.name=absent"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("error: no prepared data set")
    assert done.stdout == ""
