"""Sweeps that are broken, by real processes that are really killed: they end as those that are not."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle as ray_pickle
from ray import tune as ray_tune
from ray.exceptions import RayActorError
from ray.tune.stopper import TimeoutStopper
from ray.util.placement_group import placement_group_table

from cluster.local.object_store import ObjectStore
from icre import config, figures
from icre.errors import ConfigError
from icre.figures import sweep_curves
from pipelines.data import prepare
from pipelines.experiments import engine, trial_process, tuning
from pipelines.experiments.outcomes import Outcome, chosen, failure_of, grouped, is_settled, outcomes_of
from pipelines.experiments.plan import listed_trials
from pipelines.experiments.results import summarise
from pipelines.experiments.searchers import scheduler_of, searcher_of
from pipelines.experiments.sweep import sweep_of
from pipelines.experiments.trial import METRICS, Sweep, chosen_trial, lineage
from pipelines.runs.run import Run
from pipelines.storage import Storage
from pipelines.training import launch
from pipelines.training.execution import execute
from pipelines.training.trainer import Trainer
from tests.conftest import Recipes
from tests.killing import WAIT_S, killing_workers, last_step, wait_until
from tests.training import equal, timeless, trained_plainly, weights

ROOT = Path(__file__).resolve().parents[2]

on_ray = pytest.mark.usefixtures("ray_cluster")


def swept(recipe: config.Recipe, name: str) -> Sweep:
    return sweep_of(recipe, name, listed_trials(recipe, name))


def run_of(sweep: Sweep, number: int) -> Run:
    return sweep.run_called(sweep.trials[number].run)


def assert_same_end(run: Run, plain: Trainer) -> None:
    assert timeless(run.metrics()) == timeless(plain.metrics)
    assert equal(weights(run), plain.network.state_dict())


@pytest.mark.slow
@on_ray
@pytest.mark.timeout(400)
def test_a_training_whose_workers_are_lost_too_often_fails_and_ends_as_undisturbed_when_it_is_retried(
    recipes: Recipes, object_store: ObjectStore
) -> None:
    """All that the sweep has is in S3. A command that is killed with its whole Ray: tests/walks."""
    settings = ("train.epochs=4", "evaluation.trials=2", "tune.concurrent=1", "train.max_failures=0")
    space = "tune.space={loss.icg.weight: [0.5]}"
    recipe = recipes(*settings, "tune.method=grid", space, f"storage={object_store.url}/broken-sweep")
    data = prepare.run(recipe)
    sweep = swept(recipe, "broken")
    run = run_of(sweep, 0)
    with killing_workers(run, after=(6,)) as killed:
        engine.run_trials(sweep, [0], concurrent=1)
    assert len(killed) == 1 and 6 <= last_step(run) < 24
    (outcome,) = outcomes_of(sweep)
    assert outcome.state == "failed" and "worker process has died" in str(outcome.error)
    failure = failure_of([outcome])
    assert failure is not None and failure.exit_code == 1

    engine.run_trials(sweep, [0], concurrent=1, retry_failed=True)
    plain = trained_plainly(sweep.trials[0].recipe, data)
    assert_same_end(run, plain)
    best = max((row for row in plain.metrics if row["kind"] == "validation"), key=lambda row: row["mAP"])
    (outcome,) = outcomes_of(sweep)
    assert (outcome.state, outcome.epochs) == ("finished", 4)
    assert outcome.best == {metric: best[metric] for metric in METRICS}


@pytest.mark.slow
@on_ray
@pytest.mark.timeout(300)
def test_a_training_gives_back_its_place_where_all_of_ray_train_is_lost(recipes: Recipes) -> None:
    """As on a node that runs out of memory, where Ray kills whatever it finds."""
    recipe = recipes("train.epochs=6", "train.max_failures=0")
    prepare.run(recipe)
    run = launch.start(recipe, "lost")
    whole, others = ("PlacementGroupCleaner", "TrainController", "RayTrainWorker"), set(placement_group_table())
    with killing_workers(run, *whole, after=(1,)) as killed, pytest.raises(RayActorError):
        execute(run)
    assert len(killed) >= 3

    def states() -> set[str]:
        return {row["state"] for name, row in placement_group_table().items() if name not in others}

    wait_until(lambda: states() == {"REMOVED"}, lambda: True)


def test_figure_3_has_a_panel_for_each_key_and_the_recipe_is_in_all_of_them(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes("tune.method=each", "tune.space={loss.icg.weight: [0.5], loss.icg.rho1: [0.2]}")
    sweep = swept(recipe, "panels")
    for number, asked in enumerate(sweep.trials):
        run = run_of(sweep, number)
        (run.location / "config.yaml").write_text(asked.recipe.to_yaml())
        (run.location / "manifest.json").write_json({"seed": asked.recipe.seed, **lineage(asked, sweep)})
        validate(run, [number / 10])
        run.write_status("finished")
    drawn: list[list[figures.Sweep]] = []
    monkeypatch.setattr(figures, "sweep_curves", lambda panels, **_: drawn.append(panels) or sweep_curves(panels))  # type: ignore[func-returns-value]
    summarise(sweep, synthetic=True)
    own, weight, rho1 = ({"rank1": [reached], "mAP": [reached]} for reached in (0.0, 0.1, 0.2))
    assert drawn == [
        [
            figures.Sweep("loss.icg.weight", {1.0: own, 0.5: weight}, chosen=1.0),
            figures.Sweep("loss.icg.rho1", {recipe.loss.icg.rho1: own, 0.2: rho1}, chosen=recipe.loss.icg.rho1),
        ]
    ]


@pytest.mark.slow
@on_ray
@pytest.mark.timeout(120)
def test_tpe_goes_on_with_what_it_had_begun_and_trains_nothing_twice(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_for(trials: int) -> Sweep:
        space = "tune.space={optimizer.lr: {low: 0.0001, high: 1.0}}"
        return swept(recipes("tune.method=tpe", f"tune.trials={trials}", space, "train.epochs=1"), "chosen")

    def reached(sweep: Sweep) -> dict[str, tuple[Any, Any]]:
        engine.run_trials(sweep, [], concurrent=1)
        return {outcome.run: (outcome.labels, outcome.best) for outcome in outcomes_of(sweep)}

    prepare.run(ask_for(3).base)
    monkeypatch.setattr(engine, "train_trial", played)
    ray_pickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import the tests
    before = reached(ask_for(3))
    assert len(before) == 3
    # As after a kill: one of them still trains, and Ray Tune has written nothing down.
    (Storage(ask_for(3).location) / "tune").delete()
    cut = ask_for(3).run_called(min(before))
    cut.write_status("running")
    cut.write_metrics([])
    after = reached(ask_for(5))
    assert {run: after[run] for run in before} == before
    assert len(after) == 5 == len({json.dumps(labels) for labels, _ in after.values()})
    counts = (Storage(ask_for(5).location) / "status.json").read_json()["counts"]
    assert counts == {"pending": 0, "running": 0, "finished": 5, "stopped": 0, "failed": 0}


def played(settings: dict[str, Any], *, sweep: Sweep, retry_failed: bool) -> None:
    """A training of no time, which reaches its learning rate."""
    asked = chosen_trial(settings["values"], sweep, settings["run"])
    run = sweep.run_called(asked.run)
    if not (run.location / "manifest.json").exists():
        launch.start(asked.recipe, asked.run, lineage=lineage(asked, sweep))
    reached = asked.recipe.optimizer.lr
    validate(run, [reached])
    ray_tune.report({"epoch": 1, "run": asked.run, **{f"best_{metric}": reached for metric in METRICS}})
    run.write_status("finished")


def played_slowly(settings: dict[str, Any], *, sweep: Sweep, retry_failed: bool) -> None:
    """As :func:`played`; when ``tune.hours`` are over, one has not begun yet and another is in its second epoch."""
    known = "values" in settings
    asked = chosen_trial(settings["values"], sweep, settings["run"]) if known else sweep.trials[settings["trial"]]
    if sweep.base.tune.hours is None:
        values = {"optimizer.lr": asked.recipe.optimizer.lr}
        played({"values": values, "run": asked.run}, sweep=sweep, retry_failed=retry_failed)
        return
    folder = Path(sweep.base.storage)
    with suppress(FileExistsError):
        (folder / "slow").touch(exist_ok=False)
        time.sleep(WAIT_S)
    launch.start(asked.recipe, asked.run, lineage=lineage(asked, sweep)).write_status("running")
    validate(sweep.run_called(asked.run), [0.5])
    ray_tune.report({"epoch": 1, "run": asked.run, **{f"best_{metric}": 0.5 for metric in METRICS}})
    (folder / "late").touch()
    time.sleep(WAIT_S)


@pytest.mark.slow
@on_ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["tpe", "asha"])
def test_a_sweep_goes_on_after_its_hours(recipes: Recipes, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    space = "tune.space={optimizer.lr: {low: 0.0001, high: 1.0}}"
    asked = (f"tune.method={method}", "tune.trials=3", "tune.grace_epochs=3", "train.epochs=3", space)

    def ended(*overrides: str) -> tuple[dict[str, int], list[str]]:
        sweep = swept(recipes(*asked, *overrides), "timed")
        settled = {outcome.run for outcome in outcomes_of(sweep) if is_settled(outcome, sweep.base)}
        unfinished = [number for number, trial in enumerate(sweep.trials) if trial.run not in settled]
        engine.run_trials(sweep, unfinished, concurrent=2)
        counts: dict[str, int] = (Storage(sweep.location) / "status.json").read_json()["counts"]
        runs = [outcome.state for outcome in outcomes_of(sweep)]
        return {state: count for state, count in counts.items() if count}, runs

    prepare.run(recipes(*asked))
    monkeypatch.setattr(engine, "train_trial", played_slowly)
    ray_pickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import the tests
    late = Path(recipes().storage) / "late"
    monkeypatch.setattr(TimeoutStopper, "stop_all", lambda _: late.exists())
    begun = 1 if method == "tpe" else 3  # what tpe will choose is not known
    assert ended("tune.hours=1") == ({"pending": 3}, ["pending"] * begun)
    assert ended() == ({"finished": 3}, ["finished"] * 3)


def played_where_processes_die(settings: dict[str, Any], *, sweep: Sweep, retry_failed: bool) -> None:
    """As :func:`played`, in a process that is killed the first time, as with its node; one then has a defect, too."""
    asked = sweep.trials[settings["trial"]]
    rate = asked.recipe.optimizer.lr
    died = Path(sweep.base.storage) / f"died-{rate}"
    if not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if rate == 0.03:
        raise MemoryError("no room for a tensor")
    played({"values": {"optimizer.lr": rate}, "run": asked.run}, sweep=sweep, retry_failed=retry_failed)


@on_ray
@pytest.mark.timeout(300)
def test_a_trial_whose_process_is_lost_begins_again_and_stops_no_other(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "tune.space={optimizer.lr: [0.03]}"
    recipe = recipes("tune.method=each", space, "train.epochs=1", "train.max_failures=1", "optimizer.lr=0.02")
    prepare.run(recipe)
    sweep = swept(recipe, "lost")
    monkeypatch.setattr(engine, "train_trial", played_where_processes_die)
    ray_pickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import the tests
    engine.run_trials(sweep, range(len(sweep.trials)), concurrent=2)
    kept, lost = outcomes_of(sweep)
    assert (kept.state, lost.state) == ("finished", "failed")
    assert lost.error == "MemoryError: no room for a tensor"
    assert f"tune: {lost.run} failed: MemoryError" in capsys.readouterr().err
    assert len(list(Path(recipe.storage).glob("died-*"))) == 2, "each was killed once"


def validate(run: Run, reached: Sequence[float]) -> None:
    """Write a validation of each epoch down."""
    run.write_metrics(
        {"kind": "validation", "step": 6 * (epoch + 1), "epoch": epoch, **dict.fromkeys(METRICS, value)}
        for epoch, value in enumerate(reached)
    )


def known(rate: float, mAP: float | None, state: str = "finished") -> Outcome:
    best = None if mAP is None else dict.fromkeys(METRICS, mAP)
    return Outcome(f"chosen-{rate}", 0, {"optimizer.lr": rate, "model.sdce_order": "cross"}, state, best=best)


def test_what_tpe_knew_decides_what_it_chooses_after_a_restart(recipes: Recipes) -> None:
    """Trainings say that a rate of 1e-5 is the best; those that have failed had reached more before they did."""
    space = "optimizer.lr: {low: 1.0e-6, high: 1.0, log: true}, model.sdce_order: [cross, self_cross]"
    sweep = swept(recipes("tune.method=tpe", f"tune.space={{{space}}}"), "chosen")
    past = [known(rate, 1 - abs(np.log10(rate) + 5) / 5) for rate in np.logspace(-6, 0, 21).tolist()]
    past += [known(0.5 + number / 100, 2.0, "failed") for number in range(3)]
    cut = known(0.123, 0.4, "running")

    def choices(before: Sequence[Outcome], count: int, **options: Any) -> list[dict[str, Any]]:
        searcher = searcher_of(sweep, before, **options)
        assert searcher is not None
        return [searcher.suggest(str(number)) or {} for number in range(count)]

    def distance(found: Sequence[dict[str, Any]]) -> float:
        return float(np.median([abs(np.log10(choice["values"]["optimizer.lr"]) + 5) for choice in found]))

    begun, *new = choices([*past, cut], 12)
    assert begun["run"] == "chosen-0.123" and chosen_trial(begun["values"], sweep, "x").labels == cut.labels
    assert [choice["run"] for choice in new] == [f"chosen-{number}" for number in range(1, 12)]
    assert distance(new) < 0.7 < 1.4 < distance(choices([], 12))
    # The same seed, and one training that is over: the next is another.
    (only,) = choices([], 1)
    over = Outcome(
        "chosen-0", 0, chosen_trial(only["values"], sweep, "x").labels, "finished", best=dict.fromkeys(METRICS, 0.5)
    )
    assert choices([over], 1)[0]["values"] != only["values"]
    assert choices(past, 1, retry_failed=True)[0]["run"] == "chosen-0.5"


def test_tpe_chooses_no_combination_that_breaks_a_rule(recipes: Recipes) -> None:
    space = "tune.space={model.dim: [32, 64], model.heads: [4, 64]}"
    sweep = sweep_of(recipes("tune.method=tpe", space), "chosen", ())
    searcher = searcher_of(sweep)
    assert searcher is not None
    found = [chosen_trial((searcher.suggest(str(n)) or {})["values"], sweep, "x").labels for n in range(20)]
    assert {tuple(values.values()) for values in found} == {(32, 4), (64, 4), (64, 64)}
    narrow = searcher_of(sweep_of(recipes("tune.method=tpe", "tune.space={model.heads: [64]}"), "chosen", ()))
    assert narrow is not None
    with pytest.raises(ConfigError, match=r"(?s)100 choices in a row .*model\.heads=64"):
        narrow.suggest("0")


def test_asha_compares_with_what_was_finished_before_a_restart(recipes: Recipes) -> None:
    space = "tune.space={optimizer.lr: {low: 1.0e-6, high: 1.0e-2, log: true}}"
    sweep = swept(recipes("train.epochs=9", "tune.method=asha", "tune.trials=3", space), "asha")
    validate(run_of(sweep, 0), [0.3, 0.5, 0.4])

    def decision(epoch: int, reached: float) -> str:
        scheduler = scheduler_of(sweep, [run_of(sweep, 0)])
        assert scheduler is not None
        trial: Any = SimpleNamespace(config={"trial": 1}, trial_id="abc")
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        return str(scheduler.on_trial_result(None, trial, {"epoch": epoch, "best_mAP": reached}))  # type: ignore[arg-type]

    assert decision(1, 0.29) == "STOP" and decision(1, 0.31) == "CONTINUE"
    assert decision(3, 0.49) == "STOP" and decision(3, 0.51) == "CONTINUE"


def test_the_best_until_now_counts_what_was_reached_before_a_restart(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = swept(recipes("tune.method=each", "tune.space={loss.icg.weight: [0.5]}"), "told")
    run = run_of(sweep, 1)
    (run.location / "config.yaml").write_text(sweep.trials[1].recipe.to_yaml())
    (run.location / "manifest.json").write_json({})
    validate(run, [0.2, 0.6, 0.4])
    run.write_status("finished")
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(trial_process, "_trial_id", lambda: "abc")
    monkeypatch.setattr(ray_tune, "report", told.append)
    trial_process.train_trial({"trial": 1}, sweep=sweep)
    assert [(row["epoch"], row["mAP"], row["best_mAP"], row["run"]) for row in told] == [(3, 0.4, 0.6, "told-0001")]


@on_ray
def test_what_the_images_do_not_allow_is_an_error_before_or_a_failure_with_its_reason(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = recipes("tune.method=grid", "tune.space={batch.identities: [4, 500, 501]}")
    data = prepare.run(many)
    with pytest.raises(ConfigError, match=r"many-0001: .*500.*\nmany-0002: .*501"):
        tuning.run(swept(many, "many"), data)
    assert not Storage(swept(many, "many").location).exists()

    searched = recipes("tune.method=tpe", "tune.space={batch.identities: {low: 500, high: 501, integer: true}}")
    sweep = swept(searched, "searched")
    monkeypatch.setattr(trial_process, "_trial_id", lambda: "abc")
    trial_process.train_trial({"values": {"batch.identities": 500}, "run": "searched-abc"}, sweep=sweep)
    (found,) = outcomes_of(sweep)
    assert (found.run, found.state, found.labels) == ("searched-abc", "failed", {"batch.identities": 500})
    assert "500" in str(found.error)


def test_a_training_that_failed_is_not_the_best_whatever_it_had_reached() -> None:
    groups = grouped([known(0.1, 0.4), known(0.2, 0.9, "failed"), known(0.3, None, "running")])
    best = chosen(groups, config.Recipe())
    assert best is not None and best.labels["optimizer.lr"] == 0.1
    assert groups[1].spread("mAP") is None and groups[1].outcomes[0].to_dict()["best"]["mAP"] == 0.9
