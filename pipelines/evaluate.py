"""``icre evaluate``: a checkpoint is ranked on the test identities; the result lands in the run's eval/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from icre import config
from icre.data.sources import sysu
from icre.data.sources.permutations import read_permutations
from icre.evaluation import protocol_of
from icre.evaluation.draws import Permutations
from pipelines import runs
from pipelines.command import ConfigFile, DryRun, Overrides, RunName, override_recipe, read_recipe, run_command, say
from pipelines.data.prepared import open_data
from pipelines.features import features_of, model_hash
from pipelines.measure import measure
from pipelines.networks import load_network
from pipelines.prepare import describe_counts
from pipelines.reporting.camera_table import camera_tables_markdown
from pipelines.reporting.metric_table import metric_table_markdown
from pipelines.runs import Run
from pipelines.session import Demand, ray_session_for
from pipelines.storage import Storage

CheckpointName = Annotated[
    list[str],
    typer.Option("--checkpoint", help="best, last, step-…, or untrained: the network before its first step."),
]
Protocols = Annotated[
    list[str] | None,
    typer.Option("--protocol", help="A protocol, see docs/protocols.md; may be repeated. None: evaluation.protocol."),
]


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    run: RunName = "latest",
    checkpoints: CheckpointName = ["best"],  # noqa: B006
    protocols: Protocols = None,
) -> None:
    """Rank the test identities by one protocol or several.

    The run's own recipe counts, with the overrides on top; --config and storage= only say where the run is.
    """
    asked = read_recipe(config_file, overrides)
    found = runs.open_run(Storage(asked.storage), run)
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
    with ray_session_for(found.location, Demand.of_embedding(recipes[0].evaluation), dashboard=False):
        results = [evaluate(found, recipe, name) for recipe in recipes for name in checkpoints]
    tables = [metric_table_markdown(results), *map(camera_tables_markdown, results)]
    print("\n\n".join(filter(None, tables)))


def evaluated_recipes(
    run: Run, storage: str, overrides: Sequence[str] = (), protocols: Sequence[str] | None = None
) -> list[config.Recipe]:
    """The run's own recipe with ``overrides`` on top, in the storage it was found in; one for each protocol."""
    where = f"run {run.name}"
    common = [f"storage={storage}"]
    if not protocols:
        return [override_recipe(run.recipe, [*overrides, *common], where=where)]
    own = config.Evaluation()
    reset = [f"evaluation.{key}={getattr(own, key)}" for key in sorted(config.FOLDER_CHOICES)]
    return [
        override_recipe(
            run.recipe,
            [*(reset if name != "folder" else ()), *overrides, *common, f"evaluation.protocol={name}"],
            where=where,
        )
        for name in dict.fromkeys(protocols)
    ]


def evaluate(run: Run, recipe: config.Recipe, name: str) -> dict[str, Any]:
    """Evaluate one checkpoint inside an open Ray session and write ``eval/<name>-<protocol>.json``."""
    data = open_data(recipe)
    permutations = permutations_of(recipe) if protocol_of(recipe).draw == "official" else None
    network, described = load_network(run.location.url, name)
    model = described["sha256"] or model_hash(network)
    features, kept = features_of(run, name, model, data, "test", recipe)
    how = recipe.evaluation.protocol + (", features as extracted before" if kept else "")
    say(f"evaluate: {described['name']} checkpoint of {run.name} on {data.location.url}, {how}")
    result = {
        "run": run.name,
        "checkpoint": described,
        "synthetic": data.manifest["synthetic"],
        **measure(features, data, recipe, permutations=permutations),
    }
    for difference in result["data"]["differences"]:
        say(f"warning: {difference}")
    result_path(run, name, recipe).write_json(result)
    return result


def permutations_of(recipe: config.Recipe) -> Permutations | None:
    """The official draws of SYSU-MM01, which lie beside the images that were prepared; None without ``data.root``."""
    return None if recipe.data.root is None else read_permutations(Path(recipe.data.root) / sysu.PERMUTATIONS)


def result_path(run: Run, name: str, recipe: config.Recipe) -> Storage:
    """Where the result of a checkpoint is written."""
    settings = recipe.evaluation
    options = [option for option in ("flip", "rerank") if getattr(settings, option)]
    return run.location / "eval" / f"{'-'.join([name, settings.protocol, *options])}.json"


if __name__ == "__main__":
    run_command(command)
