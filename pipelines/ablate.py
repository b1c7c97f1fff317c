"""``icre ablate``: one of the method's ablation tables, every variant trained and evaluated over several seeds."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from icre import config, figures
from icre.ablation import TABLES, Variant
from icre.errors import ConfigError
from pipelines import prepare, runs, series, synthesize
from pipelines.command import ConfigFile, DryRun, Overrides, read_recipe, run_command, say
from pipelines.data.prepared import PreparedData, open_data
from pipelines.reporting.ablation_table import METRICS, Entry, ablation_table_latex, ablation_table_markdown
from pipelines.reporting.plates import PRINTED
from pipelines.runs import Run
from pipelines.storage import Storage
from pipelines.tuning import engine
from pipelines.tuning import trial as tuning
from pipelines.tuning.outcomes import failure_of, outcomes_of
from pipelines.tuning.trial import Sweep

Table = Annotated[str, typer.Option("--table", help=f"One of {', '.join(TABLES)}.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Seeds of each variant: the recipe's, and those after it.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="A variant's name; may be repeated. None: the whole table.")
]


@dataclass(frozen=True)
class Trial:
    """One training: a variant with a seed."""

    variant: Variant
    recipe: config.Recipe
    run: Run


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    table: Table = "components",
    seeds: Seeds = 3,
    only: Only = None,
) -> None:
    """Train and evaluate every variant of a table; mean ± standard deviation over seeds, as Markdown and LaTeX.

    The tables lambda and rho1 are the sweeps of the paper's Figure 3, which is drawn beside them as sweep.png and .pdf.

    Runs that are finished are not repeated, and one that was interrupted goes on, so the same command resumes.
    """
    recipe = read_recipe(config_file, overrides)
    trials = plan(recipe, table=table, seeds=seeds, only=only or [])
    folder = Storage(recipe.storage) / "ablations" / f"{recipe.name}-{table}"
    if dry_run:
        print(recipe.to_yaml())
        for trial in trials:
            changes = " ".join(trial.variant.overrides) or "the recipe as it is"
            print(f"{trial.run.name} ({trial.run.state or 'new'}): {changes}")
        print(f"\nwould write: {len(trials)} runs in {runs.runs(Storage(recipe.storage)).url}, {folder.url}")
        return
    if recipe.data.synthetic is not None:
        synthesize.run(recipe)
    with series.session_for(recipe, folder, at_once=engine.local_room(recipe)):
        data = prepare.run(recipe) if recipe.data.root is not None else open_data(recipe)
        markdown = run(trials, data, folder)
    print(f"\n{markdown}\n\n{(folder / 'table.md').url}")
    if (failure := failure_of(outcomes_of(_sweep_of(trials, folder)))) is not None:
        raise failure


def plan(recipe: config.Recipe, *, table: str, seeds: int, only: Sequence[str] = ()) -> list[Trial]:
    """The trainings of a table, seed by seed, so that an early stop leaves whole tables of fewer seeds.

    Every recipe is checked here: ConfigError names all that break a rule before anything is trained.
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
            trials.append(Trial(variant, changed, Run(runs.runs(Storage(recipe.storage)) / name)))
    if problems:
        lines = [f"{name}: {message}" for name, message in problems.items()]
        raise ConfigError("\n".join(lines), hint="a table's variants change keys of the recipe; see --dry-run")
    return trials


def run(trials: Sequence[Trial], data: PreparedData, folder: Storage) -> str:
    """Run ``trials`` inside an open Ray session; the table, written anew after each of them."""
    for trial in trials:
        series.check_reusable(trial.run, trial.recipe, data)
    sweep = _sweep_of(trials, folder)
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


def _sweep_of(trials: Sequence[Trial], folder: Storage) -> Sweep:
    """The trainings in the words of the engine that `icre tune` runs on, too."""
    own = trials[0].recipe
    base = own.model_copy(update={"tune": config.Tune(method="grid", concurrent=own.tune.concurrent)})
    listed = tuple(
        tuning.Trial(trial.run.name, trial.recipe.to_dict(), {"variant": trial.variant.name}) for trial in trials
    )
    return Sweep(folder.name, folder.url, base.to_dict(), (Path(sys.argv[0]).name, *sys.argv[1:]), listed)


def _whole_seeds(trials: Sequence[Trial], concurrent: int) -> list[list[int]]:
    """Numbers of the trials, in parts of whole seeds that keep the cluster busy: a table is written after each."""
    seeds = sorted({trial.recipe.seed for trial in trials})
    each = -(-concurrent * len(seeds) // len(trials))
    parts = [set(seeds[start : start + each]) for start in range(0, len(seeds), each)]
    return [[number for number, trial in enumerate(trials) if trial.recipe.seed in part] for part in parts]


def _sweep(trials: Sequence[Trial], entries: Sequence[Entry]) -> figures.Sweep:
    """A panel of the paper's Figure 3: rank-1 and mAP, means of the directions, against the parameter's value."""
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
    """One trial's result; a training that failed is an entry that says why, and the others go on."""
    variant, seed, name = trial.variant.name, trial.recipe.seed, trial.run.name
    if trial.run.state == "finished":
        return Entry(variant, seed, name, result=series.evaluation_of(trial.run, trial.recipe))
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


if __name__ == "__main__":
    run_command(command)
