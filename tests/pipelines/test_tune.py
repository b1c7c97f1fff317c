"""Sweeps: what comes out, what a second call does, what fails. On Ray Tune: test_tune_faults and tests/walks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray import cloudpickle as ray_pickle

from cluster.local.object_store import ObjectStore
from icre import config
from icre.errors import ConfigError, DataError, UserError
from pipelines import tune
from pipelines.data import prepare
from pipelines.experiments import engine, trial_process, tuning
from pipelines.experiments.outcomes import Group, Outcome, chosen, failure_of, grouped, outcomes_of
from pipelines.experiments.plan import Probe, describe, listed_trials
from pipelines.experiments.probing import probe
from pipelines.experiments.searchers import scheduler_of, searcher_of
from pipelines.experiments.sweep import open_sweep, sweep_of
from pipelines.experiments.trial import Sweep, chosen_trial
from pipelines.runs.run import Run
from pipelines.storage import Storage
from tests.conftest import Recipes
from tests.training import train_here

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("train.epochs=2", "train.steps_per_epoch=2", "evaluation.trials=2", "tune.concurrent=2")
RATES = "tune.space={optimizer.lr: [2.0e-4, 1.0e-3, 1.0e+30]}"

on_ray = pytest.mark.usefixtures("ray_cluster")


def swept(recipe: config.Recipe, name: str) -> Sweep:
    return sweep_of(recipe, name, listed_trials(recipe, name))


@on_ray
@pytest.mark.timeout(300)
def test_a_sweep_ends_with_the_best_recipe_and_a_second_call_trains_nothing(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "run_trials", train_here)
    monkeypatch.setattr(tuning, "probe", lambda *_: Probe(1.0, 2**20))
    ray_pickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import the tests
    recipe = recipes(*SHORT, "tune.method=each", RATES)
    data = prepare.run(recipe)
    sweep = swept(recipe, "rates")
    capsys.readouterr()
    said = tuning.run(sweep, data)
    assert capsys.readouterr().out == "", "standard output is for results"

    folder = Storage(sweep.location)
    found = {outcome.run: outcome for outcome in outcomes_of(sweep)}
    assert [outcome.state for outcome in found.values()] == ["finished", "finished", "failed"]
    assert "not finite" in str(found["rates-0002"].error) and "rates-0002 failed" in said
    status = (Run.named(recipe.storage, "rates-0002").location / "status.json").read_json()
    assert status["state"] == "failed" and "not finite" in status["error"]
    # What the table says is what the runs' own validations say.
    reached = {}
    for name in ("rates-0000", "rates-0001"):
        rows = [row for row in Run.named(recipe.storage, name).metrics() if row["kind"] == "validation"]
        assert len(rows) == 2 == found[name].epochs
        reached[name] = max(row["mAP"] for row in rows)
    assert {name: outcome.best["mAP"] for name, outcome in found.items() if outcome.best} == reached
    winner = Run.named(recipe.storage, max(reached, key=lambda name: reached[name]))
    best = config.parse_recipe(yaml.safe_load((folder / "best.yaml").read_text()), where="best.yaml")
    assert best == winner.recipe
    assert (winner.location / "eval" / "best-folder.json").exists() and "on the test identities" in said
    others = [name for name in reached if name != winner.name]
    assert not any((Run.named(recipe.storage, name).location / "eval").exists() for name in others), (
        "test metrics of one only"
    )
    manifest = winner.manifest
    assert manifest["sweep"]["name"] == "rates" and sweep.location in manifest["parents"]
    assert {"sweep.png", "sweep.pdf", "parallel.png", "table.md"} <= set(folder.list())

    before = {name: (Run.named(recipe.storage, name).location / "status.json").read_text() for name in found}
    assert tuning.run(sweep, data) == said
    after = {name: (Run.named(recipe.storage, name).location / "status.json").read_text() for name in found}
    assert after == before

    # The same name for something else, and what is there, by a stranger to this process.
    with pytest.raises(UserError, match=r"rates exists .*optimizer\.backbone_lr \(0\.0002 there, 0\.5 now\)"):
        tuning.run(swept(recipes(*SHORT, "tune.method=each", RATES, "optimizer.backbone_lr=0.5"), "rates"), data)
    again, definition = open_sweep(Storage(recipe.storage), "rates")
    assert definition["data"]["hash"] == data.hash
    assert grouped(outcomes_of(again)) == grouped(list(found.values()))


@on_ray
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(recipes: Recipes, tmp_path: Path) -> None:
    recipe = recipes(*SHORT, RATES)
    images = shutil.copytree(str(recipe.data.root), tmp_path / "without")
    lists = json.loads((images / "split.json").read_text())
    (images / "split.json").write_text(json.dumps(lists | {"train": lists["train"] + lists["val"], "val": []}))
    without = recipes(*SHORT, RATES, f"data.root={images}", "data.name=without")
    data = prepare.run(without)
    with pytest.raises(DataError, match="validation identities"):
        tuning.run(swept(without, "blind"), data)
    assert not Storage(swept(without, "blind").location).exists()
    with pytest.raises(ConfigError, match=r"train\.workers=\[1, 2\]"):
        path = tmp_path / "elastic.yaml"
        path.write_text(recipes(*SHORT, RATES, "train.workers=[1,2]").to_yaml())
        tune.command(path, [])
    with pytest.raises(DataError, match="no sweep 'missing'"):
        open_sweep(Storage(recipe.storage), "missing")


def test_combinations_that_break_a_rule_are_named_before_anything_is_trained(recipes: Recipes) -> None:
    recipe = recipes("tune.space={model.dim: [32, 64], model.heads: [4, 64]}")
    with pytest.raises(ConfigError) as caught:
        listed_trials(recipe, "wide")
    message = caught.value.message
    assert "model.dim=32, model.heads=64: " in message and "model.dim=64, model" not in message


@pytest.mark.parametrize(
    ("cpus", "gpus", "settings", "fit"),
    [
        ([8.0], [0.0], ("train.workers=1", "train.cpus_per_worker=1", "train.loaders=2", "train.loader_cpus=0.5"), 4),
        # A worker and its loaders are not cut over two nodes: three places on each, two workers a training.
        ([7.0, 7.0], [0.0, 0.0], ("train.workers=2", "train.cpus_per_worker=2", "train.loaders=0.0", "x"), 3),
        ([0.0, 16.0], [0.0, 2.0], ("train.workers=1", "train.cpus_per_worker=1", "train.gpus_per_worker=1", ""), 2),
    ],
)
def test_as_many_trainings_run_side_by_side_as_fit(
    cpus: list[float], gpus: list[float], settings: tuple[str, ...], fit: int
) -> None:
    asked = [text for text in settings if "=" in text and "0.0" not in text]
    asked += ["train.cache=decoded"] if "train.loaders=0.0" in settings else []
    recipe = config.override(config.Recipe(), [*asked], where="the test")
    assert engine.concurrency(recipe, cpus=cpus, gpus=gpus) == fit
    with pytest.raises(ConfigError, match="room for 0"):
        engine.concurrency(recipe, cpus=[0.5], gpus=[0.0])


def test_what_tpe_chooses_is_what_the_recipe_gets() -> None:
    """Optuna takes words and numbers for the items of a list; lists among them must survive the way."""
    space = {
        "schedule.milestones": [[], [2.5, 7]],
        "model.sdce_order": ["cross", "self_cross"],
        "optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True},
        "batch.identities": {"low": 4, "high": 6, "integer": True},
    }
    asked = {"tune": {"method": "tpe", "space": space}}
    recipe = config.parse_recipe(asked, where="the test")
    sweep = sweep_of(recipe, "sweep", ())
    searcher = searcher_of(sweep)
    assert searcher is not None
    seen = set()
    for number in range(20):
        suggested = searcher.suggest(str(number))
        assert suggested is not None and suggested["run"] == f"sweep-{number}"
        got = chosen_trial(suggested["values"], sweep, "a-run").recipe
        assert got.schedule.milestones in ((), (2.5, 7.0)) and got.model.sdce_order in ("cross", "self_cross")
        assert 1e-5 <= got.optimizer.lr <= 1e-2 and got.batch.identities in (4, 5, 6)
        assert got.optimizer.lr == suggested["values"]["optimizer.lr"]
        seen.add((got.schedule.milestones, got.model.sdce_order, got.batch.identities))
        searcher.on_trial_complete(str(number), {"best_mAP": 0.1 * number})
    assert len(seen) > 3


def test_asha_knows_after_a_restart_what_was_reached_before_it(recipes: Recipes) -> None:
    """Rungs after 1, 3 and 9 epochs: whoever is behind the run that is there is stopped at the first of them."""
    space = "tune.space={optimizer.lr: {low: 1.0e-6, high: 1.0e-2, log: true}}"
    sweep = swept(recipes("train.epochs=9", "tune.method=asha", "tune.trials=3", space), "asha")

    def decision(number: int, reached: float) -> str:
        scheduler = scheduler_of(sweep)
        assert scheduler is not None
        trials = [SimpleNamespace(config={"trial": n}, trial_id=f"id{n}") for n in range(3)]
        for trial in trials:
            scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        result = {"epoch": 1, "best_mAP": reached}
        return str(scheduler.on_trial_result(None, trials[number], result))  # type: ignore[arg-type]

    assert decision(1, 0.1) == "CONTINUE", "nothing to be compared with"
    before = Run.named(sweep.base.storage, sweep.trials[0].run)
    before.write_metrics(
        {"kind": "validation", "step": 6 * n, "epoch": n - 1, "mAP": 0.5 + n / 100, "rank1": 0.0, "mINP": 0.0}
        for n in range(1, 4)
    )
    assert decision(1, 0.1) == "STOP" and decision(1, 0.6) == "CONTINUE"
    assert decision(0, 0.0) == "CONTINUE", "its own first rung is behind it"


def test_trainings_that_have_not_begun_cost_no_requests(
    recipes: Recipes, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    space = "tune.space={optimizer.lr: {low: 0.1, high: 0.2}}"
    sweep = swept(recipes("tune.method=random", "tune.trials=50", space, f"storage={object_store.url}/idle"), "idle")
    before = object_store.requests()
    assert [outcome.state for outcome in outcomes_of(sweep)] == ["pending"] * 50
    assert (object_store.requests() - before).total() < 10


def outcome(run: str, value: float, seed: int, mAP: float | None, rank1: float = 0.0) -> Outcome:
    best = None if mAP is None else {"mAP": mAP, "rank1": rank1, "mINP": 0.0}
    return Outcome(run, seed, {"optimizer.lr": value}, "finished", best=best)


def test_the_best_is_chosen_by_the_mean_over_all_seeds() -> None:
    lucky = [outcome("a", 0.1, 0, 0.9), outcome("b", 0.1, 1, None)]
    steady = [outcome("c", 0.2, 0, 0.5), outcome("d", 0.2, 1, 0.6)]
    uneven = [outcome("e", 0.3, 0, 0.8), outcome("f", 0.3, 1, 0.2)]
    found = chosen(grouped([*lucky, *steady, *uneven]), config.Recipe())
    assert found == Group({"optimizer.lr": 0.2}, tuple(steady))
    assert chosen(grouped(lucky), config.Recipe()) is None


def test_the_plan_counts_hours_storage_and_cost(recipes: Recipes) -> None:
    recipe = recipes(
        "train.epochs=10",
        "train.cpus_per_worker=2",
        "train.loaders=1",
        "train.loader_cpus=1",
        "tune.cpu_hour_price=0.5",
    )
    text = describe(recipe, trainings=8, unfinished=6, steps_per_epoch=100, concurrent=2, measured=Probe(3.57, 2**30))
    # 6 trainings two at a time are 3 turns of 1,000 x 3.57 s + 30 s = 1 h; 3 CPUs for 6 h at 0.5; 3 checkpoints each.
    assert "8 trainings, 6 unfinished, 2 at a time" in text
    assert "about 3 hours" in text and "18 GiB" in text and "about 9.00" in text


def test_the_probe_measures_a_step_and_the_size_of_what_is_kept(recipes: Recipes) -> None:
    recipe = recipes("optimizer.name=adam", "train.workers=2")
    measured = probe(recipe, classes=5)
    assert measured.step_s > 0
    # Adam keeps two tensors beside each weight: three times the weights, and a little for buffers and counters.
    from pipelines.runs.networks import initial_network

    network = initial_network(recipe, classes=5)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    assert abs(measured.checkpoint_bytes - 3 * weights - buffers) < 0.01 * weights


def test_the_probe_measures_a_recipe_that_diverges(recipes: Recipes) -> None:
    assert probe(recipes("optimizer.lr=1.0e+30", "optimizer.backbone_lr=1.0e+30"), classes=5).step_s > 0


def test_icre_tune_needs_no_word_for_its_main_verb(recipes: Recipes, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(recipes(RATES).to_yaml())
    told = [
        subprocess.run(
            [sys.executable, "-m", "pipelines.tune", *words, "--config", str(path), "--dry-run", "name=here"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        ).stdout
        for words in ([], ["run"])
    ]
    assert told[0] == told[1] and told[0].count("here-grid-000") == 3


def test_a_mistake_of_the_user_is_recorded_as_itself_and_ends_the_command(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a node does not see the storage: Tune would begin anew whatever raises, so nothing does."""
    sweep = swept(recipes(*SHORT, "tune.method=each", RATES), "blind")
    monkeypatch.setattr(trial_process, "_trial_id", lambda: "id")
    for number in range(len(sweep.trials)):
        trial_process.train_trial({"trial": number}, sweep=sweep)
    outcomes = outcomes_of(sweep)
    assert [outcome.state for outcome in outcomes] == ["failed"] * 3
    failure = failure_of(outcomes)
    assert isinstance(failure, UserError) and failure.exit_code == 2
    assert failure.message.startswith("3 of 3 trainings failed; blind-0000: no prepared data set at /")
    assert failure.hint.startswith("run `icre prepare`")

    diverged = replace(outcomes[0], error="not finite", exit_code=1)
    assert failure_of([diverged, replace(diverged, state="finished")]).exit_code == 1  # type: ignore[union-attr]
    assert failure_of([replace(diverged, state="stopped")]) is None
