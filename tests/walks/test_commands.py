"""Every command that the README and docs/ show: run by a walk, run here, or listed with the reason why not.

Seven processes, one training.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.walks import commands
from tests.walks.commands import documented, every_command
from tests.walks.conftest import Road
from tests.walks.walking import ROOT, Folder, table

pytestmark = pytest.mark.timeout(1800)

HERE = Path(__file__).parent
NOT_RUN = {
    "python -m cluster.monitoring --ray-folder /tmp/icre-ray-…": "two servers from Debian on fixed ports; "
    "tests/cluster/test_monitoring.py starts them on free ones",
    "icre submit --kubernetes --overlay cluster/kuberay/overlays/production --id train-47 train "
    "--config configs/sysu-sgd.yaml": "creates a RayJob in a Kubernetes, with kubectl",
    "make test": "runs this suite",
    "make check": "runs a part of this suite",
}
"""Commands that no walk runs, and why."""


@cache
def walked() -> dict[str, str]:
    """Command to the file of the walk that asks for it by its words: calls of ``documented`` and ``block_with``."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args):
                continue
            named = _text(call.args[0], path)
            if call.func.id == "documented" and named is not None:
                found[named] = path.name
            if call.func.id == "block_with" and named is not None:
                found |= {" ".join(words): path.name for words in commands.block_with(named)}
    return found


def _text(node: ast.expr, path: Path) -> str | None:
    """A string, written there or under a name of the module or function."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        for other in ast.walk(ast.parse(path.read_text())):
            if isinstance(other, ast.Assign) and ast.unparse(other.targets[0]) == node.id:
                return _text(other.value, path)
    return None


@pytest.mark.parametrize("command", every_command())
def test_every_command_of_the_text_is_run_or_listed(command: str) -> None:
    assert (command in walked()) != (command in NOT_RUN), "neither run by a walk nor listed, or both"


def test_every_listed_command_still_stands_in_the_text() -> None:
    assert NOT_RUN.keys() | walked().keys() <= every_command().keys()


# Those of which no other walk is the place.


@pytest.fixture(scope="module")
def folder(road: Road) -> Folder:
    return road.folder


def test_the_demo_is_one_command(folder: Folder) -> None:
    """The baseline's: images and data set are there, so it trains, evaluates and reports."""
    before = folder.runs()
    told = folder.run(*documented("icre demo --config configs/demo.yaml components=[]"))
    (run,) = folder.runs() - before
    assert folder.training(run).state == "finished"
    assert (folder.training(run).path / "report/index.html").is_file()
    assert f"storage/runs/{run}" in told.out and "untrained" in told.out


def test_longer_trainings_are_planned(folder: Folder) -> None:
    """What would take hours says what it would do, and writes nothing."""
    before = folder.runs()
    longer, table_of_all, two_rows = folder.at_once(
        [
            *documented("icre train --config configs/demo.yaml train.epochs=20 loss.icg.weight=0.5 --run longer"),
            "--dry-run",
        ],
        [*documented("icre ablate --config configs/ablation-synthetic.yaml --table components --seeds 3"), "--dry-run"],
        documented(
            "icre ablate --config configs/ablation-synthetic.yaml --table mpfr --only no masks --only softmax masks "
            "--dry-run"
        ),
    )
    assert "epochs: 20" in longer.out and "weight: 0.5" in longer.out
    assert len(re.findall(r"^ablation-synthetic-components-\S+-seed\d", table_of_all.out, re.MULTILINE)) == 24
    assert len(re.findall(r"^ablation-synthetic-mpfr-\S+-seed\d", two_rows.out, re.MULTILINE)) == 6
    assert folder.runs() == before


def test_the_doctor_of_this_machine(folder: Folder) -> None:
    """Whether a machine is fit is its own affair; that the doctor's exit code says so is not."""
    shown, as_json = folder.at_once(
        documented("icre doctor"), [word for word in documented("icre doctor --json …") if word != "…"], code=None
    )
    assert shown.code == as_json.code
    found = json.loads(as_json.out)
    failed = [finding for finding in found["findings"] if finding["state"] == "failed"]
    assert as_json.code == (1 if failed else 0) and found["ok"] == (not failed)


def build_sysu(root: Path) -> None:
    """Eight people to train with and four to test with, an image for each of six cameras."""
    drawn = np.random.default_rng(0)
    (root / "exp").mkdir(parents=True)
    for name, people in {"train": range(1, 8), "val": [8], "test": range(9, 13)}.items():
        (root / f"exp/{name}_id.txt").write_text(",".join(str(person) for person in people) + "\n")
        for person in people:
            for camera in range(1, 7):
                place = root / f"cam{camera}/{person:04d}"
                place.mkdir(parents=True)
                for number in range(1, 3):
                    pixels = drawn.integers(0, 256, (64, 32, 3), np.uint8)
                    Image.fromarray(pixels).save(place / f"{number:04d}.jpg")


def test_sysu_is_prepared_and_its_training_planned(folder: Folder, running_ray: dict[str, str]) -> None:
    """Twelve people in random pixels, laid out as the release is; that there are too few is a warning."""
    folder = folder.on(running_ray)
    build_sysu(folder / "SYSU-MM01")
    mine = {"data.root=/data/SYSU-MM01": "data.root=SYSU-MM01"}
    prepare = documented("icre prepare --config configs/sysu-sgd.yaml data.root=/data/SYSU-MM01", mine)
    assert table(folder.run(*prepare).out)["train"][0] == "8"
    folder.run(*documented("icre train --config configs/sysu-sgd.yaml"), "--dry-run")


def test_make_demo_is_that_command() -> None:
    """What make would do; the installation is not repeated."""
    told = subprocess.run(
        [*documented("make demo"), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert "icre demo --config configs/demo.yaml" in told.stdout
    targets = (ROOT / "Makefile").read_text()
    for command in every_command():
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", targets, re.MULTILINE)


# Commands that stand in sentences and tables


@cache
def in_sentences(beginning: str) -> set[str]:
    """Commands between backquotes, also where the line breaks inside."""
    found = set()
    for text in commands.texts().values():
        quoted = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        found |= {" ".join(words.split()) for words in quoted if " ".join(words.split()).startswith(beginning)}
    return found


def test_every_benchmark_that_is_named_is_there() -> None:
    modules = {command.split()[2] for command in in_sentences("python -m benchmarks.")}
    assert len(modules) > 10
    assert [module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").is_file()] == []


def test_every_test_that_is_named_finds_some() -> None:
    """Files and folders are there, and an expression after -k chooses tests; all are collected once."""
    asked = [shlex.split(command)[3:] for command in in_sentences("python -m pytest")]
    assert len(asked) > 5
    with_choice = [words for words in asked if "-k" in words]
    paths = sorted({word for words in asked for word in words if word.startswith("tests/")})
    assert [path for path in paths if not (ROOT / path).exists()] == []
    files = sorted({word for words in with_choice for word in words if word.startswith("tests/")})
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", *files],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    for words in with_choice:
        chosen = words[words.index("-k") + 1]
        assert re.fullmatch(r"\w+", chosen), "more than one word: let pytest itself choose"
        assert [line for line in told.stdout.splitlines() if "::" in line and chosen in line.partition("::")[2]]
