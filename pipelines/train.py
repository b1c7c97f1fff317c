"""``icre train``: train a network on a prepared data set with Ray Train, into a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from icre import config
from icre.errors import DataError, UserError
from pipelines.data.prepare import describe_counts
from pipelines.data.prepared import open_data
from pipelines.runs.provenance import hardware
from pipelines.runs.run import Run, open_run, runs_of
from pipelines.runtime.command import (
    ConfigFile,
    DryRun,
    Overrides,
    Verbose,
    override_recipe,
    read_recipe,
    run_command,
)
from pipelines.runtime.console import say
from pipelines.runtime.session import Demand, ray_session_for
from pipelines.storage import Storage
from pipelines.training.execution import execute
from pipelines.training.launch import start, steps_per_epoch
from pipelines.training.resumption import describe_resumption, to_resume

Resume = Annotated[
    str,
    typer.Option(
        "--resume",
        help="never: start a new run. auto: resume the newest unfinished run of this recipe (or --run), else start a "
        "new one. Or the name of a run to resume with its own recipe.",
    ),
]
FromTrial = Annotated[
    str | None,
    typer.Option(
        "--from-trial",
        metavar="RUN",
        help="Repeat the training of this run, such as a sweep's trial, from its start with its recipe. On the same "
        "hardware it is identical to the last digit. Overrides change the recipe.",
    ),
]
NewRun = Annotated[str | None, typer.Option("--run", help="Name of the new run. Default: <name>-<date>-<time>.")]


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    run: NewRun = None,
    resume: Resume = "never",
    from_trial: FromTrial = None,
    verbose: Verbose = False,
) -> None:
    """Train on a prepared data set; checkpoints and metrics are written to the run folder."""
    recipe = read_recipe(config_file, overrides)
    if verbose:
        say(recipe.to_yaml())
    if from_trial is not None:
        repeat(recipe, config_file, overrides or [], from_trial, run, resume, dry_run=dry_run)
        return
    unfinished = to_resume(recipe, run, resume, overrides or [])
    if dry_run:
        print(plan(recipe, run) if unfinished is None else describe_resumption(unfinished))
        return
    if unfinished is None:
        started = start(recipe, run)
    else:
        started = unfinished
        say(describe_resumption(started))
    _train(started)


def repeat(
    asked: config.Recipe,
    config_file: Path | None,
    overrides: Sequence[str],
    trial: str,
    name: str | None,
    resume: str,
    *,
    dry_run: bool,
) -> None:
    """Repeat the training of the run ``trial``. Raises UserError for options that contradict it."""
    if config_file is not None or resume != "never":
        raise UserError(
            f"--from-trial {trial} with --config or --resume: the run has its recipe, and the new one starts as it did",
            hint="leave them out; single keys can be changed: key.sub=value",
        )
    source = open_run(Storage(asked.storage), trial)
    recipe = override_recipe(source.recipe, [*overrides, f"storage={asked.storage}"], where=f"run {trial}")
    if open_data(recipe).hash != source.manifest["data"]["hash"]:
        raise DataError(
            f"run {trial} was trained on other images than {open_data(recipe).location.url} has now",
            hint="prepare the images that it was trained on under another data.name, and name that",
        )
    for difference in differing_software(source.manifest):
        say(f"warning: {difference}: the last digits may differ")
    if dry_run:
        print(plan(recipe, name))
        return
    _train(start(recipe, name, lineage={"repeats": source.name, "parents": [source.location.url]}))


def differing_software(manifest: Mapping[str, Any]) -> list[str]:
    """Differences in packages, processor and GPUs from the run with this manifest, as text."""
    here = {"torch": metadata.version("torch"), **hardware()}
    there = {"torch": manifest["packages"]["torch"], **manifest["hardware"]}
    return [f"{key} is {here[key]!r}, it was {there[key]!r}" for key in here if here[key] != there.get(key)]


def _train(started: Run) -> None:
    with ray_session_for(started.location, Demand.of_training(started.recipe.train)):
        execute(started)
    say(f"train: finished; next: icre evaluate --run {started.name} storage={started.recipe.storage}")
    print(started.location.url)


def plan(recipe: config.Recipe, name: str | None) -> str:
    """Text of what ``train`` would do: recipe, counts, steps and paths."""
    data = open_data(recipe)
    steps = steps_per_epoch(recipe, data)
    run = runs_of(Storage(recipe.storage)) / (name or f"{recipe.name}-<date>-<time>")
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
