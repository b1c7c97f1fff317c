"""Run the trainings of an ablation table and write its results."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from icre import config, figures
from icre.errors import ConfigError
from pipelines.data.prepared import PreparedData
from pipelines.experiments import engine, runner
from pipelines.experiments import trial as tuning
from pipelines.experiments.ablation_table import METRICS, Entry, ablation_table_latex, ablation_table_markdown
from pipelines.experiments.tables import TABLES, Variant
from pipelines.experiments.trial import Sweep
from pipelines.reporting.figure_export import PRINTED
from pipelines.runs.run import Run
from pipelines.runtime.console import say
from pipelines.storage import Storage


@dataclass(frozen=True)
class Trial:
    """One training: a variant with a seed."""

    variant: Variant
    recipe: config.Recipe
    run: Run


def plan(recipe: config.Recipe, *, table: str, seeds: int, only: Sequence[str] = ()) -> list[Trial]:
    """The trainings of a table, ordered by seed: stopping early leaves complete tables with fewer seeds.

    All recipes are checked here: ConfigError lists every invalid one before training starts.
    """
    variants = _variants(table, only)
    problems: dict[str, str] = {}
    trials = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        for variant in variants:
            try:
                changed = config.override(recipe, [*variant.overrides, f"seed={seed}"], where=variant.name)
            except ConfigError as error:
                problems[variant.name] = error.message
                continue
            name = f"{recipe.name}-{table}-{_slug(variant.name)}-seed{seed}"
            trials.append(Trial(variant, changed, Run.named(recipe.storage, name)))
    if problems:
        lines = [f"{name}: {message}" for name, message in problems.items()]
        raise ConfigError("\n".join(lines), hint="a table's variants change keys of the recipe; see --dry-run")
    return trials


def run(trials: Sequence[Trial], data: PreparedData, folder: Storage) -> str:
    """Run ``trials`` inside an open Ray session; returns the table, which is rewritten after each training."""
    for trial in trials:
        runner.check_reusable(trial.run, trial.recipe, data)
    sweep = sweep_of(trials, folder)
    concurrent = engine.room(sweep.base)
    entries: list[Entry] = []
    markdown = ""
    for numbers in _whole_seeds(trials, concurrent):
        unfinished = [number for number in numbers if trials[number].run.state != "finished"]
        say(f"ablate: trainings {numbers[0] + 1} to {numbers[-1] + 1} of {len(trials)}, {len(unfinished)} unfinished")
        if unfinished:
            engine.run_trials(sweep, unfinished, concurrent=concurrent, retry_failed=True)
        entries += [_entry(trials[number]) for number in numbers]
        markdown = ablation_table_markdown(entries)
        _write(folder, markdown, trials, entries)
    return markdown


def _write(folder: Storage, markdown: str, trials: Sequence[Trial], entries: Sequence[Entry]) -> None:
    (folder / "results.json").write_json([entry.to_dict() for entry in entries])
    (folder / "table.md").write_text(markdown + "\n")
    (folder / "table.tex").write_text(ablation_table_latex(entries))
    if trials[0].variant.value is not None:
        figure = figures.sweep_curves([_sweep(trials, entries)])
        for kind in PRINTED:
            (folder / f"sweep.{kind}").write_bytes(figures.encode(figure, kind))


def sweep_of(trials: Sequence[Trial], folder: Storage) -> Sweep:
    """The trainings as a sweep for the engine shared with `icre tune`."""
    own = trials[0].recipe
    base = own.model_copy(update={"tune": config.Tune(method="grid", concurrent=own.tune.concurrent)})
    listed = tuple(
        tuning.Trial(trial.run.name, trial.recipe.to_dict(), {"variant": trial.variant.name}) for trial in trials
    )
    return Sweep(folder.name, folder.url, base.to_dict(), (Path(sys.argv[0]).name, *sys.argv[1:]), listed)


def _whole_seeds(trials: Sequence[Trial], concurrent: int) -> list[list[int]]:
    """Trial numbers in batches of whole seeds that keep the cluster busy; a table is written after each batch."""
    seeds = sorted({trial.recipe.seed for trial in trials})
    each = -(-concurrent * len(seeds) // len(trials))
    parts = [set(seeds[start : start + each]) for start in range(0, len(seeds), each)]
    return [[number for number, trial in enumerate(trials) if trial.recipe.seed in part] for part in parts]


def _sweep(trials: Sequence[Trial], entries: Sequence[Entry]) -> figures.Sweep:
    """One panel of the paper's Figure 3: rank-1 and mAP, averaged over directions, against the parameter's value."""
    values = {trial.variant.name: trial.variant.value for trial in trials}
    points: dict[float, dict[str, list[float]]] = {}
    for entry in entries:
        value = values[entry.variant]
        assert value is not None
        reached = points.setdefault(value, {metric: [] for metric in METRICS})
        for metric in METRICS:
            if (mean := entry.mean_metric(metric)) is not None:
                reached[metric].append(mean)
    symbol, _, chosen = trials[0].variant.name.partition(" = ")
    return figures.Sweep(symbol, points, chosen=float(chosen))


def _entry(trial: Trial) -> Entry:
    """Result of one trial; a failed training gives an entry with the reason and does not stop the others."""
    variant, seed, name = trial.variant.name, trial.recipe.seed, trial.run.name
    if trial.run.state == "finished":
        return Entry(variant, seed, name, result=runner.evaluation_of(trial.run, trial.recipe))
    status = (trial.run.location / "status.json").read_json() if trial.run.state else {}
    return Entry(variant, seed, name, failure=str(status.get("error", "it could not be started")).split("\n")[0])


def _variants(table: str, only: Sequence[str]) -> list[Variant]:
    if table not in TABLES:
        raise ConfigError(f"--table {table}: there is no such table", hint=f"the tables are {', '.join(TABLES)}")
    names = [variant.name for variant in TABLES[table]]
    if unknown := sorted(set(only) - set(names)):
        raise ConfigError(
            f"--only {unknown}: {table} has no such variant", hint=f"the variants of {table}: {'; '.join(names)}"
        )
    return [variant for variant in TABLES[table] if not only or variant.name in only]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("ρ", "rho")).strip("-")
