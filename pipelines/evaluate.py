"""``icre evaluate``: rank the test identities with a checkpoint; the result is written to the run's eval/."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer

from icre.evaluation import protocol_of
from pipelines.data.prepare import describe_counts
from pipelines.data.prepared import open_data
from pipelines.evaluation.evaluate import evaluate, evaluated_recipes, result_path
from pipelines.reporting.camera_table import camera_tables_markdown
from pipelines.reporting.metric_table import metric_table_markdown
from pipelines.runs.run import open_run
from pipelines.runtime.command import (
    ConfigFile,
    DryRun,
    Overrides,
    RunName,
    read_recipe,
    run_command,
)
from pipelines.runtime.session import Demand, ray_session_for
from pipelines.storage import Storage

CheckpointName = Annotated[
    list[str],
    typer.Option("--checkpoint", help="best, last, step-…, or untrained: the network before its first step."),
]
Protocols = Annotated[
    list[str] | None,
    typer.Option("--protocol", help="Protocol, see docs/protocols.md; may be repeated. Default: evaluation.protocol."),
]


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    run: RunName = "latest",
    checkpoints: CheckpointName = ["best"],  # noqa: B006
    protocols: Protocols = None,
) -> None:
    """Rank the test identities by one or more protocols.

    The run's own recipe applies, with the overrides on top; --config and storage= only locate the run.
    """
    asked = read_recipe(config_file, overrides)
    found = open_run(Storage(asked.storage), run)
    recipes = evaluated_recipes(found, asked.storage, overrides or [], protocols)
    if dry_run:
        data = open_data(recipes[0])
        print(recipes[0].to_yaml())
        print(f"{describe_counts(data.manifest['counts'])}\n")
        for recipe in recipes:
            print(protocol_of(recipe).describe())
            for name in checkpoints:
                print(f"would write: {result_path(found, name, recipe).url}")
        return
    settings = recipes[0].evaluation
    with (
        ray_session_for(found.location, Demand.of_embedding(settings), dashboard=False)
        if settings.workers
        else nullcontext()
    ):
        results = [evaluate(found, recipe, name) for recipe in recipes for name in checkpoints]
    tables = [metric_table_markdown(results), *map(camera_tables_markdown, results)]
    print("\n\n".join(filter(None, tables)))


if __name__ == "__main__":
    run_command(command)
