"""Plan of a sweep before it starts: its trainings and their cost."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass

from icre import config
from icre.errors import ConfigError
from pipelines.experiments.search_space import check_space, points
from pipelines.experiments.trial import Trial

START_S = 30.0
"""Start-up time of Ray Train per training, on the machines it was measured on."""


def listed_trials(recipe: config.Recipe, name: str) -> list[Trial]:
    """All trainings of a sweep whose points are known in advance; none for tpe, which chooses them during the sweep.

    Ordered by seed: stopping early leaves complete tables with fewer seeds. Raises ConfigError listing every key and
    value of the space that the recipe rejects, and every combination that breaks a rule between keys.
    """
    check_space(recipe)
    if recipe.tune.method == "tpe" and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "tune.method=tpe needs Optuna, which is not installed", hint="pip install 'icre[tune]', or another method"
        )
    if recipe.tune.method == "tpe":
        return []
    found = points(recipe)
    several = recipe.tune.seeds > 1
    trials: list[Trial] = []
    problems: dict[int, str] = {}
    for seed in range(recipe.seed, recipe.seed + recipe.tune.seeds):
        for point in found:
            run = f"{name}-{point.number:04d}" + (f"-seed{seed}" if several else "")
            try:
                overrides = [*point.overrides, f"seed={seed}"]
                trials.append(Trial.of(recipe, run, overrides=overrides, labels=point.values))
            except ConfigError as error:
                problems.setdefault(point.number, f"{point.describe()}: {error.message}")
    if problems:
        raise ConfigError(
            "\n".join(problems.values()),
            hint="these combinations break a rule between keys; take one of the values out of tune.space",
        )
    return trials


@dataclass(frozen=True)
class Probe:
    """Measurements of a few steps of the recipe."""

    step_s: float
    """Seconds of one worker's step, without waiting for data or other workers."""
    checkpoint_bytes: int
    """Size of the network and the optimiser state."""


def describe(
    recipe: config.Recipe, *, trainings: int, unfinished: int, steps_per_epoch: int, concurrent: int, measured: Probe
) -> str:
    """The plan in a few lines: trainings, steps, hours, storage and, with prices, cost."""
    steps = recipe.train.epochs * steps_per_epoch
    workers, _ = recipe.train.worker_range
    each_h = (steps * measured.step_s + START_S) / 3600
    concurrent = min(concurrent, max(unfinished, 1))
    hours = math.ceil(unfinished / concurrent) * each_h
    kept = recipe.checkpoints.keep + 1 + (recipe.train.epochs // (recipe.checkpoints.keep_every or math.inf))
    most = "at most " if recipe.tune.method == "asha" else ""
    lines = [
        f"tune: {trainings} trainings, {unfinished} unfinished, {concurrent} at a time, {workers} worker(s) each",
        f"  {recipe.train.epochs} epochs x {steps_per_epoch} steps each; a step takes {measured.step_s:.2g} s by "
        "itself, without waiting for data or other workers",
        f"  {most}about {hours:.2g} hours, of which {START_S:.0f} s a training are Ray's start",
        f"  {most}{kept * unfinished * measured.checkpoint_bytes / 2**30:.2g} GiB of checkpoints",
    ]
    price = _price(recipe, trainings_h=unfinished * each_h * workers)
    lines += [f"  {most}about {price:.2f} in the currency of your prices"] if price is not None else []
    return "\n".join(lines)


def _price(recipe: config.Recipe, *, trainings_h: float) -> float | None:
    train, prices = recipe.train, recipe.tune
    if prices.cpu_hour_price is None and prices.gpu_hour_price is None:
        return None
    cpus = train.cpus_per_worker + train.loaders * train.loader_cpus
    return trainings_h * (cpus * (prices.cpu_hour_price or 0) + train.gpus_per_worker * (prices.gpu_hour_price or 0))
