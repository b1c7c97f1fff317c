"""Run a sweep from its recipe to the best result: session, plan, trainings and results."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import ray

from icre import config
from icre.errors import ConfigError, DataError, StoppedError
from pipelines.data import prepare, synthesize
from pipelines.data.prepared import PreparedData, open_data
from pipelines.evaluation import evaluate
from pipelines.experiments import engine, runner
from pipelines.experiments.outcomes import failure_of, is_settled, outcomes_of
from pipelines.experiments.plan import describe, listed_trials
from pipelines.experiments.probing import probe
from pipelines.experiments.results import runs_in, summarise
from pipelines.experiments.search_space import overrides_of
from pipelines.experiments.sweep import begin, check_same, sweep_of
from pipelines.experiments.trial import Sweep
from pipelines.reporting.metric_table import metric_table_markdown
from pipelines.runs.run import Run, runs_of
from pipelines.runtime.console import say
from pipelines.runtime.progress import progress
from pipelines.storage import Storage
from pipelines.training import launch


def tune(recipe: config.Recipe, sweep_name: str | None, *, dry_run: bool, retry_failed: bool) -> None:
    """Run the sweep of ``recipe`` in its own Ray session, or, with ``dry_run``, print its plan.

    Raises ConfigError or UserError for an invalid sweep, and at the end the error of a failed training.
    """
    fewest, most = recipe.train.worker_range
    if fewest != most:
        raise ConfigError(
            f"train.workers={[fewest, most]} in a sweep: how many trainings fit side by side could not be known",
            hint="give one number",
        )
    name = sweep_name or f"{recipe.name}-{recipe.tune.method}"
    sweep = sweep_of(recipe, name, listed_trials(recipe, name))
    if dry_run:
        _describe(sweep)
        return
    if recipe.data.synthetic is not None:
        synthesize.run(recipe)
    with runner.session_for(recipe, Storage(sweep.location), at_once=engine.local_room(recipe)):
        data = prepare.run(recipe) if recipe.data.root is not None else open_data(recipe)
        with _stopping_on_sigterm(sweep):
            markdown = run(sweep, data, retry_failed=retry_failed)
    print(f"\n{markdown}\n\n{sweep.location}")
    if (failure := failure_of(outcomes_of(sweep))) is not None:
        raise failure


def run(sweep: Sweep, data: PreparedData, *, retry_failed: bool = False) -> str:
    """Run a sweep inside an open Ray session; returns its table and the best result's test metrics as Markdown."""
    recipe = sweep.base
    check_same(sweep, data)
    _check_comparable(sweep, data)
    begin(sweep, data)
    outcomes = outcomes_of(sweep)
    settled = {outcome.run for outcome in outcomes if is_settled(outcome, recipe, retry_failed=retry_failed)}
    unfinished = [number for number, trial in enumerate(sweep.trials) if trial.run not in settled]
    concurrent = engine.room(recipe)
    planned = len(sweep.trials) or recipe.tune.trials
    left = len(unfinished) if sweep.trials else max(0, planned - len(settled))
    if left:
        classes = len(data.classes)
        with progress("tune: a few steps, to estimate the hours"):
            measured: Any = ray.get(
                ray.remote(num_cpus=recipe.train.cpus_per_worker, num_gpus=recipe.train.gpus_per_worker)(probe).remote(
                    recipe, classes
                )
            )
        each = launch.steps_per_epoch(recipe, data)
        say(
            describe(
                recipe,
                trainings=planned,
                unfinished=left,
                steps_per_epoch=each,
                concurrent=concurrent,
                measured=measured,
            )
        )
        engine.run_trials(sweep, unfinished, concurrent=concurrent, retry_failed=retry_failed)
    markdown, best = summarise(sweep, synthetic=data.manifest["synthetic"])
    if best is None:
        return markdown
    results = [runner.evaluation_of(found, _evaluated(found, recipe)) for found in runs_in(sweep, best)]
    return f"{markdown}\n\nThe best one on the test identities:\n\n{metric_table_markdown(results)}"


def _check_comparable(sweep: Sweep, data: PreparedData) -> None:
    """Check before training that there is a metric to compare by, and that no run name is taken by another run."""
    if not data.rows_of("val"):
        raise DataError(
            f"{data.location.url} has no validation identities, so no training could be called better than another",
            hint="give some: data.split.val=0.1, or a val list in the split file; then prepare again",
        )
    problems: dict[str, str] = {}
    for trial in sweep.trials:
        runner.check_reusable(sweep.run_called(trial.run), trial.recipe, data)
        try:
            launch.check_images(trial.recipe, data)
        except (ConfigError, DataError) as error:
            problems.setdefault(error.message, trial.run)
    if problems:
        lines = [f"{run}: {message}" for message, run in problems.items()]
        raise ConfigError("\n".join(lines), hint="these images do not allow it; --dry-run lists all trainings")


def _evaluated(run: Run, recipe: config.Recipe) -> config.Recipe:
    (own,) = evaluate.evaluated_recipes(run, recipe.storage)
    return own


@contextlib.contextmanager
def _stopping_on_sigterm(sweep: Sweep) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise StoppedError(f"sweep {sweep.name} stopped, as it was asked to", hint="the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _describe(sweep: Sweep) -> None:
    recipe = sweep.base
    print(recipe.to_yaml())
    for trial in sweep.trials:
        print(f"{trial.run}: {' '.join(overrides_of(trial.labels)) or 'the recipe as it is'} seed={trial.recipe.seed}")
    if not sweep.trials:
        print(f"{recipe.tune.trials} trainings that {recipe.tune.method} chooses")
    print(f"\nwould write: {runs_of(Storage(recipe.storage)).url}/{sweep.name}-*, {sweep.location}")
