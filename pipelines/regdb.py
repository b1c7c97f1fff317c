"""``icre regdb``: one training for each of RegDB's ten fixed splits, and the mean that RegDB tables report."""

from __future__ import annotations

from typing import Annotated

import typer

from icre.data.sources.regdb import TRIALS
from icre.errors import TrainingError
from pipelines.experiments import runner
from pipelines.experiments.regdb import describe, plan, run
from pipelines.runs.run import runs_of
from pipelines.runtime.command import ConfigFile, DryRun, Overrides, read_recipe, run_command
from pipelines.storage import Storage

Trials = Annotated[
    list[int] | None,
    typer.Option("--trials", help="A split, 1 to 10; may be repeated. Default: all ten, as in published results."),
]


def command(
    config_file: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False, trials: Trials = None
) -> None:
    """Prepare, train and evaluate RegDB's splits; print a row per split and mean ± standard deviation as Markdown.

    The same command resumes: finished runs are skipped, and an interrupted run continues.
    """
    recipe = read_recipe(config_file, overrides)
    splits = plan(recipe, trials or TRIALS)
    folder = Storage(recipe.storage) / "regdb" / recipe.name
    if dry_run:
        print(recipe.to_yaml())
        for split in splits:
            print(describe(split))
        print(f"\nwould write: {len(splits)} runs in {runs_of(Storage(recipe.storage)).url}, {folder.url}")
        return
    with runner.session_for(recipe, folder):
        markdown = run(splits, folder)
    print(f"\n{markdown}\n\n{(folder / 'table.md').url}")
    if failed := [split.run.name for split in splits if split.run.state == "failed"]:
        raise TrainingError(
            f"{len(failed)} of {len(splits)} trainings failed: {', '.join(failed)}",
            hint="the reasons are below the table; the same command trains them on",
        )


if __name__ == "__main__":
    run_command(command)
