"""How the command line starts: what is only listed, looked up or completed imports no library that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from icre import config
from pipelines.experiments.sweep import DEFINITION, sweeps
from pipelines.storage import Storage
from pipelines.verbs import VERBS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "aiohttp",
    "botocore",
    "matplotlib",
    "pandas",
    "pyarrow",
    "ray",
    "s3fs",
    "scipy",
    "sklearn",
    "torch",
}
PROGRAM = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=open({modules!r}, "w")))
sys.argv[0] = "icre"
from pipelines.cli import main
main()
"""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A model in service, and a sweep with one training that was validated and one that has not begun."""
    place = Storage(tmp_path / "storage")
    entry = {"kind": "promote", "time": "now", "by": "me", "run": "good", "checkpoint": "step-00000004"}
    entry |= {"folder": "good-4", "sha256": "0" * 64, "origin": 1, "previous": 0}
    (place / "registry/mine/history/000001.json").write_json(entry)
    recipe = config.parse_recipe({"tune": {"space": {"loss.icg.weight": [0.5]}}, "storage": place.url}, where="a test")
    definition = {"recipe": recipe.to_dict(), "data": {"hash": "0", "synthetic": True}}
    (sweeps(place) / "rates" / DEFINITION).write_json(definition)
    run = place / "runs/rates-0000"
    (run / "config.yaml").write_text(recipe.to_yaml())
    (run / "manifest.json").write_json({"seed": 0, "sweep": {"name": "rates", "labels": {"loss.icg.weight": 0.5}}})
    (run / "status.json").write_json({"state": "finished"})
    validation = {"kind": "validation", "epoch": 0, "mAP": 0.25, "rank1": 0.5, "mINP": 0.125}
    (run / "metrics.jsonl").write_text(json.dumps(validation) + "\n")
    return place


def started(*arguments: str, tmp_path: Path, **environment: str) -> tuple[str, set[str]]:
    """Standard output of the command in a process of its own, and the packages that it had imported at its end."""
    modules = tmp_path / "modules"
    command = [sys.executable, "-c", PROGRAM.format(modules=str(modules)), *arguments]
    settings = os.environ | {"COLUMNS": "80"} | environment
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=settings)
    assert done.returncode == 0, done.stderr
    return done.stdout, {name.partition(".")[0] for name in modules.read_text().split()}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("--help", "Train on a prepared data set."),
        ("--version", metadata.version("icre")),
        ("config show", "identities:"),
        ("config schema", '"identities"'),
        ("registry list storage={storage}", "| mine | 1 | good | step-00000004 | now |"),
        ("registry --help", "rollback"),
        ("tune status rates --storage {storage}", "25.0"),
        ("tune --help", "status"),
        ("tune run --help", "--retry-failed"),
        ("synthesize --help", "--dry-run"),
    ],
)
def test_looking_something_up_imports_nothing_that_takes_seconds(
    arguments: str, shown: str, storage: Storage, tmp_path: Path
) -> None:
    out, loaded = started(*arguments.format(storage=storage.url).split(), tmp_path=tmp_path)
    assert shown in out
    assert "typer" in loaded
    assert loaded & HEAVY == set()


def completed(line: str, tmp_path: Path) -> tuple[list[str], set[str]]:
    """What bash proposes for the last word of ``line``, and the packages imported for it."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    out, loaded = started(tmp_path=tmp_path, _ICRE_COMPLETE="complete_bash", **words)
    return out.split(), loaded


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("icre re", ["regdb", "report", "retrain", "registry"]),
        ("icre tune ", ["run", "status"]),
        ("icre registry ro", ["rollback"]),
    ],
)
def test_completion_proposes_verbs_and_subcommands_as_quickly(line: str, proposed: list[str], tmp_path: Path) -> None:
    found, loaded = completed(line, tmp_path)
    assert found == proposed
    assert loaded & HEAVY == set()


def test_completion_of_a_verbs_options_knows_them(tmp_path: Path) -> None:
    assert completed("icre synthesize --dr", tmp_path)[0] == ["--dry-run"]


def test_completion_can_be_set_up(tmp_path: Path) -> None:
    script, _ = started(
        "--show-completion", "bash", tmp_path=tmp_path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert "_ICRE_COMPLETE=complete_bash" in script


def test_help_shows_every_summary_whole(tmp_path: Path) -> None:
    out, _ = started("--help", tmp_path=tmp_path)
    listed = out[out.index("Commands:") :].splitlines()[1:]
    assert [line.split(maxsplit=1) for line in listed] == [[name, verb.summary] for name, verb in VERBS.items()]
    assert max(len(verb.summary) for verb in VERBS.values()) <= 45
