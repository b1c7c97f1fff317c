"""``icre train``: a prepared data set becomes a trained network in a run folder, on Ray Train."""

from __future__ import annotations

from typing import Annotated

import typer

from icre import config
from pipelines import runs
from pipelines.command import ConfigFile, DryRun, Overrides, run_command, say
from pipelines.data.prepared import open_data
from pipelines.prepare import describe_counts
from pipelines.session import Demand, ray_session_for
from pipelines.storage import Storage
from pipelines.training.execution import execute
from pipelines.training.launch import start, steps_per_epoch
from pipelines.training.resumption import describe_resumption, to_resume

Resume = Annotated[
    str,
    typer.Option(
        "--resume",
        help="never: a new run. auto: the newest unfinished run of this recipe (or --run) goes on, else a new one. "
        "Or the name of the run that goes on, by its own recipe.",
    ),
]
NewRun = Annotated[str | None, typer.Option("--run", help="Name of the new run. None: <name>-<date>-<time>.")]


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    run: NewRun = None,
    resume: Resume = "never",
) -> None:
    """Train on a prepared data set; checkpoints and metrics land in the run folder."""
    recipe = config.load_recipe(config_file, overrides or [])
    unfinished = to_resume(recipe, run, resume, overrides or [])
    if dry_run:
        print(plan(recipe, run) if unfinished is None else describe_resumption(unfinished))
        return
    if unfinished is None:
        started = start(recipe, run)
    else:
        started = unfinished
        say(describe_resumption(started))
    recipe = started.recipe
    with ray_session_for(started.location, Demand.of_training(recipe.train)):
        execute(started)
    say(f"train: finished; next: icre evaluate --run {started.name} storage={recipe.storage}")
    print(started.location.url)


def plan(recipe: config.Recipe, name: str | None) -> str:
    """What ``train`` would do: the recipe, the counts, the steps, the paths."""
    data = open_data(recipe)
    steps = steps_per_epoch(recipe, data)
    run = runs.runs(Storage(recipe.storage)) / (name or f"{recipe.name}-<date>-<time>")
    return "\n".join(
        [
            recipe.to_yaml(),
            describe_counts(data.manifest["counts"]),
            f"\nclasses: {len(data.classes)}",
            f"steps: {recipe.train.epochs} epochs x {steps} = {recipe.train.epochs * steps}, "
            f"of {recipe.batch.size} images over {_workers(recipe.train)} workers",
            f"would write: {run.url}",
        ]
    )


def _workers(train: config.Train) -> str:
    fewest, most = train.worker_range
    return str(most) if fewest == most else f"{fewest} to {most}"


if __name__ == "__main__":
    run_command(command)
