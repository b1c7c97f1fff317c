"""``icre ablate``: train and evaluate every variant of an ablation table over several seeds."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.data import prepare, synthesize
from pipelines.data.prepared import open_data
from pipelines.experiments import engine, runner
from pipelines.experiments.ablation import plan, run, sweep_of
from pipelines.experiments.outcomes import failure_of, outcomes_of
from pipelines.experiments.tables import TABLES
from pipelines.runs.run import runs_of
from pipelines.runtime.command import ConfigFile, DryRun, Overrides, read_recipe, run_command
from pipelines.storage import Storage

Table = Annotated[str, typer.Option("--table", help=f"One of {', '.join(TABLES)}.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Seeds per variant: the recipe's seed and those after it.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="Name of a variant; may be repeated. Default: the whole table.")
]


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    table: Table = "components",
    seeds: Seeds = 3,
    only: Only = None,
) -> None:
    """Train and evaluate every variant of a table; write mean ± standard deviation over seeds as Markdown and LaTeX.

    The tables lambda and rho1 are the sweeps of the paper's Figure 3, which is also drawn as sweep.png and sweep.pdf.

    The same command resumes: finished runs are skipped, and an interrupted run continues.
    """
    recipe = read_recipe(config_file, overrides)
    trials = plan(recipe, table=table, seeds=seeds, only=only or [])
    folder = Storage(recipe.storage) / "ablations" / f"{recipe.name}-{table}"
    if dry_run:
        print(recipe.to_yaml())
        for trial in trials:
            changes = " ".join(trial.variant.overrides) or "the recipe as it is"
            print(f"{trial.run.name} ({trial.run.state or 'new'}): {changes}")
        print(f"\nwould write: {len(trials)} runs in {runs_of(Storage(recipe.storage)).url}, {folder.url}")
        return
    if recipe.data.synthetic is not None:
        synthesize.run(recipe)
    with runner.session_for(recipe, folder, at_once=engine.local_room(recipe)):
        data = prepare.run(recipe) if recipe.data.root is not None else open_data(recipe)
        markdown = run(trials, data, folder)
    print(f"\n{markdown}\n\n{(folder / 'table.md').url}")
    if (failure := failure_of(outcomes_of(sweep_of(trials, folder)))) is not None:
        raise failure


if __name__ == "__main__":
    run_command(command)
