"""``icre model``: its numbers, its refusals, and the README's copy of its output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from icre import config
from icre.model.complexity import component_grid
from pipelines.cli import app
from pipelines.runtime.command import run_app
from pipelines.show_model import as_markdown

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "configs" / "demo.yaml")
MIB = 2**20


def model(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``icre model``, in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["icre", "model", *arguments])
        run_app(app)
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def tables(markdown: str) -> list[dict[str, list[str]]]:
    """First cell to the other cells, for each table."""
    blocks = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    rows = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in [*block[:1], *block[2:]]] for block in blocks
    ]
    return [{row[0]: row[1:] for row in table} for table in rows]


def test_the_readmes_numbers_are_what_the_command_prints() -> None:
    text = (ROOT / "README.md").read_text()
    shown = text.partition("<!-- printed by: icre model -->\n")[2].partition("\n<!-- end of icre model -->")[0]
    recipe = config.Recipe()
    assert shown == as_markdown(recipe, component_grid(recipe, classes=395), classes=395)


@pytest.mark.parametrize("components", ["[]", "[sdce]", "[sdce,mpfr,icg]"])
def test_tables_show_the_exact_counts_of_the_recipes_network(components: str, capsys: Any) -> None:
    arguments = ["--config", DEMO, f"components={components}", "--classes", "60"]
    code, out, _ = model(capsys, *arguments)
    assert code == 0
    parts, memory, networks = tables(out)
    code, out, _ = model(capsys, *arguments, "--json")
    exact = json.loads(out)
    total, baseline = exact["total"], exact["networks"]["baseline"]
    assert (code, exact["classes"], exact["batch"]) == (0, 60, 64)
    assert ("SDCE" in parts, "MPFR" in parts) == ("sdce" in components, "mpfr" in components)
    for key in ("parameters", "macs", "activation_bytes"):
        assert sum(part[key] for part in exact["components"].values()) == total[key]
    want = [total["parameters"] / 1e6, total["macs"] / 1e9, total["macs"] / baseline["macs"]]
    assert parts["total"] == [*(f"{number:.2f}" for number in want), f"{total['activation_bytes'] / MIB:.1f}"]
    assert parts["total"] in networks.values() and len(networks) == 5
    assert total in exact["networks"].values()
    stays = [exact["memory"][f"{name}_bytes"] for name in ("weight", "gradient", "optimizer")]
    assert memory["total"] == [f"{(sum(stays) + total['activation_bytes']) / MIB:.1f}"]
    assert stays[2] == 2 * stays[1], "the demo's Adam keeps two numbers a parameter"


def test_without_classes_those_of_sysu_mm01_are_taken_and_named(capsys: Any) -> None:
    own = model(capsys, "--config", DEMO)[1].splitlines()[0]
    assert "395" in own and "SYSU-MM01" in own
    other = model(capsys, "--config", DEMO, "--classes", "60")[1].splitlines()[0]
    assert "60" in other and "SYSU" not in other


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["model.dmi=64", "data.height=100"], ["did you mean 'dim'", "data.height=100"]),
        (["model.dim=100", "model.heads=8"], ["model.dim=100", "model.heads=8"]),
        (["--classes", "0"], ["--classes"]),
        (["--classes", "many"], ["--classes"]),
        (["--config", "configs/absent.yaml"], ["configs/absent.yaml"]),
    ],
)
def test_mistakes_are_named_and_nothing_is_printed(arguments: list[str], named: list[str], capsys: Any) -> None:
    code, out, err = model(capsys, *arguments)
    assert code == 2 and out == ""
    assert [word for word in named if word not in err] == []


def test_as_a_module_it_prints_json_and_does_without_ray() -> None:
    program = (
        "import runpy, sys; sys.argv[1:] = ['--json', '--config', 'configs/demo.yaml']\n"
        "try: runpy.run_module('pipelines.show_model', run_name='__main__')\n"
        "finally: print('ray' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "False\n"
    assert json.loads(done.stdout)["backbone"] == "resnet18"
