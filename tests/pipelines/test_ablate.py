"""An ablation on real Ray: its table and figure, what a second call does, mistakes.

What happens when a training fails or the command is killed is the sweep engine's: test_tune, test_tune_faults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from icre import figures
from icre.errors import ConfigError, UserError
from icre.figures import sweep_curves
from pipelines.data import prepare
from pipelines.experiments import ablation, engine, runner, tables
from pipelines.experiments.ablation_table import Entry
from pipelines.experiments.tables import Variant
from pipelines.runs.run import Run, create_run
from pipelines.storage import Storage
from tests.conftest import Recipes
from tests.training import train_here

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(500)]

SHORT = ("train.epochs=1", "train.steps_per_epoch=2", "evaluation.trials=2")


def planned(recipes: Recipes, *overrides: str, **options: Any) -> list[ablation.Trial]:
    return ablation.plan(recipes(*SHORT, *overrides), **{"table": "components", "seeds": 2} | options)


def cells(markdown: str, variant: str) -> list[str]:
    (line,) = [line for line in markdown.splitlines() if line.startswith(f"| {variant} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_is_of_its_runs_and_a_second_call_trains_nothing(
    recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run_trials", train_here)
    monkeypatch.setitem(tables.TABLES, "components", (Variant("ICG", ("components=[icg]",)), Variant("whole")))
    trials = planned(recipes)
    assert [(t.variant.name, t.recipe.seed) for t in trials] == [("ICG", 0), ("whole", 0), ("ICG", 1), ("whole", 1)]
    trial = trials[0]  # of more than one seed: below, without a training
    data = prepare.run(trial.recipe)
    folder = Storage(tmp_path / "table")
    markdown = ablation.run([trial], data, folder)

    written = (trial.run.location / "eval" / "best-folder.json").read_json()["directions"]
    rank1 = 100 * written["visible_to_infrared"]["mean"]["rank1"]
    assert cells(markdown, "ICG")[1:3] == ["1", f"{rank1:.1f}"]
    assert "Synthetic data" in markdown and (folder / "table.md").read_text() == markdown + "\n"

    before = (trial.run.location / "status.json").read_json()["updated"]
    assert ablation.run([trial], data, folder) == markdown
    assert before == (trial.run.location / "status.json").read_json()["updated"]


def test_a_sweep_draws_figure_3(recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = planned(recipes, table="lambda")
    assert [trial.recipe.loss.icg.weight for trial in trials[:7]] == [1.0, 0.1, 0.2, 0.5, 0.8, 1.5, 2.0]

    def train(sweep: Any, numbers: Any, **_: Any) -> None:
        for trial in (trials[number] for number in numbers):
            lost = (trial.recipe.loss.icg.weight, trial.recipe.seed) == (2.0, 1)
            trial.run.write_status("failed" if lost else "finished", error="lost\n  hint: look for it")

    def evaluation_of(run: Run, recipe: Any) -> Any:
        reached = recipe.loss.icg.weight / 4 + (recipe.seed / 100 if recipe.loss.icg.weight < 1 else 0)
        scores = {"mean": {"rank1": reached, "mAP": reached / 2}, "queries": 9, "skipped": 0}
        other = scores | {"mean": {"rank1": 0.0, "mAP": 0.0}}
        data = {"name": "people", "split": "test", "images": 9, "identities": 3, "hash": "0"}
        return {
            "checkpoint": {},
            "data": data,
            "protocol": {"name": "folder"},
            "synthetic": False,
            "directions": {"visible_to_infrared": scores, "infrared_to_visible": other},
        }

    monkeypatch.setattr(engine, "run_trials", train)
    monkeypatch.setattr(runner, "evaluation_of", evaluation_of)
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "sweep_curves", lambda sweeps: drawn.append(sweeps) or sweep_curves(sweeps))
    folder = Storage(tmp_path / "sweep")
    markdown = ablation.run(trials, None, folder)  # type: ignore[arg-type]
    assert cells(markdown, "λ = 2")[1] == "1 of 2" and f"{trials[-1].run.name} failed: lost" in markdown
    ((sweep,),) = drawn[-1:]
    assert (sweep.name, sweep.chosen, sorted(sweep.points)) == ("λ", 1.0, [0.1, 0.2, 0.5, 0.8, 1.0, 1.5, 2.0])
    assert sweep.points[0.8] == {"rank1": pytest.approx([0.1, 0.105]), "mAP": pytest.approx([0.05, 0.0525])}
    assert len(sweep.points[2.0]["rank1"]) == 1
    latex = (folder / "table.tex").read_text().splitlines()
    (row,) = [line for line in latex if line.startswith(r"$\lambda$ = 0.8 &")]
    # Rank-1 is 20.0 and 21.0 %. The mean mAP is a quarter of that, 1.25 and 1.00 below the 6.25 % of λ = 1; a t of
    # 1.125 / 0.125 = 9 with one degree of freedom has p = 1 - 2 atan(9) / π = 0.0704.
    assert row.removesuffix(r" \\").split(" & ")[1:4] == ["2", r"20.5 $\pm$ 0.7", r"10.2 $\pm$ 0.4"]
    assert row.removesuffix(r" \\").split(" & ")[-2:] == [r"-1.1 $\pm$ 0.2", "0.07"]
    head = latex.index(r"\begin{tabular}{lrrrrrrr}")
    assert all(line.startswith("%") for line in latex[:head]) and latex[-1] == r"\end{tabular}"


def test_runs_with_other_settings_are_refused_before_anything_is_trained(recipes: Recipes, tmp_path: Path) -> None:
    trials = planned(recipes, only=["baseline", "ICG"], seeds=1)
    data = prepare.run(trials[0].recipe)
    create_run(trials[1].recipe, trials[1].run.name, data=data.manifest, data_url=data.location.url)
    changed = planned(recipes, "optimizer.lr=0.5", only=["baseline", "ICG"], seeds=1)
    with pytest.raises(UserError, match=r"icg-seed0 exists with other settings: optimizer\.lr\n"):
        ablation.run(changed, data, Storage(tmp_path / "table"))
    assert not (changed[0].run.location / "config.yaml").exists()


def test_unknown_tables_and_variants_and_broken_rows_are_named(
    recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="--table nothing"):
        planned(recipes, table="nothing")
    with pytest.raises(ConfigError, match=r"\['IGC'\]") as caught:
        planned(recipes, only=["IGC"])
    assert "ICG" in caught.value.hint
    rows = (Variant("one", ("model.heads=3",)), Variant("two", ("loss.icg.rho1=-1",)), Variant("three"))
    monkeypatch.setitem(tables.TABLES, "components", rows)
    with pytest.raises(ConfigError) as caught:
        planned(recipes)
    assert "one: " in caught.value.message and "two: " in caught.value.message
    assert "three: " not in caught.value.message


def test_results_are_plain_json_without_the_evaluations_pictures(tmp_path: Path) -> None:
    entry = Entry(
        "ICG",
        3,
        "a-run",
        result={
            "checkpoint": {"name": "best", "step": 4, "sha256": "0"},
            "data": {"hash": "1"},
            "directions": {"visible_to_infrared": {"mean": {"rank1": 0.5, "mAP": 0.25}, "ranked": ["many"]}},
        },
    )
    kept = json.loads(json.dumps(entry.to_dict()))
    assert kept["result"]["mean"] == {"visible_to_infrared": {"rank1": 0.5, "mAP": 0.25}}
    assert "ranked" not in json.dumps(kept) and (kept["variant"], kept["seed"]) == ("ICG", 3)
