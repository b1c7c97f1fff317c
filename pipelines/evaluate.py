"""``icre evaluate``: a checkpoint is ranked on the test identities; the result lands in the run's eval/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import typer

from icre import config
from icre.data.records import MODALITIES
from icre.evaluation import DirectionResult, FolderProtocol, run_protocol
from icre.evaluation.evidence import distance_histogram, ranked_lists
from pipelines import runs
from pipelines.command import ConfigFile, DryRun, Overrides, RunName, run_command, say
from pipelines.data.prepared import PreparedData, open_data
from pipelines.embed import embed
from pipelines.networks import load_network
from pipelines.prepare import describe_counts
from pipelines.reporting.metric_table import metric_table_markdown
from pipelines.runs import Run
from pipelines.session import Demand, ray_session_for
from pipelines.storage import Storage

CheckpointName = Annotated[
    list[str],
    typer.Option("--checkpoint", help="best, last, step-…, or untrained: the network before its first step."),
]


def command(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    run: RunName = "latest",
    checkpoints: CheckpointName = ["best"],  # noqa: B006
) -> None:
    """Rank the test identities in both directions, over several gallery draws.

    The run's own recipe counts, with the overrides on top; --config and storage= only say where the run is.
    """
    asked = config.load_recipe(config_file, overrides or [])
    found = runs.open_run(Storage(asked.storage), run)
    recipe = evaluated_recipe(found, asked.storage, overrides or [])
    if dry_run:
        data = open_data(recipe)
        print(recipe.to_yaml())
        print(describe_counts(data.manifest["counts"]))
        print(f"\n{protocol_of(recipe).describe()}")
        for name in checkpoints:
            print(f"would write: {result_path(found, name).url}")
        return
    with ray_session_for(found.location, Demand.of_embedding(recipe.evaluation)):
        results = [evaluate(found, recipe, name) for name in checkpoints]
    print(metric_table_markdown(results))


def evaluated_recipe(run: Run, storage: str, overrides: Sequence[str] = ()) -> config.Recipe:
    """The recipe that the run was trained with, ``overrides`` on top, in the storage it was found in."""
    return config.override(run.recipe, [*overrides, f"storage={storage}"], where=f"run {run.name}")


def evaluate(run: Run, recipe: config.Recipe, name: str) -> dict[str, Any]:
    """Evaluate one checkpoint inside an open Ray session and write ``eval/<name>.json``."""
    data = open_data(recipe)
    _, described = load_network(run.location.url, name)
    say(f"evaluate: {described['name']} checkpoint of {run.name} on {data.location.url}")
    features = embed(run.location.url, name, data, "test", recipe)
    result = {
        "run": run.name,
        "checkpoint": described,
        "synthetic": data.manifest["synthetic"],
        **measure(features, data, protocol_of(recipe), image_size=(recipe.data.height, recipe.data.width)),
    }
    result_path(run, name).write_json(result)
    return result


def measure(
    features: torch.Tensor, data: PreparedData, protocol: FolderProtocol, *, image_size: tuple[int, int]
) -> dict[str, Any]:
    """Everything that ``eval/<name>.json`` says about (n, D) features of the test split."""
    rows = np.asarray(data.rows_of("test"))
    labels = data.labels_and_paths.take(rows)
    pids, camids, modalities, paths = (
        np.asarray(labels[name].to_pylist(), dtype=str) for name in ("identity", "camera", "modality", "path")
    )
    results = run_protocol(features, pids, camids, modalities, paths, protocol)
    noise = torch.randn(len(features), 64, generator=torch.Generator().manual_seed(protocol.seed))
    chance = run_protocol(noise, pids, camids, modalities, paths, protocol)
    histogram = distance_histogram(features, pids, modalities)
    directions = {}
    for direction, result in results.items():
        ranked = ranked_lists(features, pids, camids, modalities, paths, protocol, direction=direction)
        directions[direction] = {
            **_describe(result),
            "chance": chance[direction].mean(),
            "distances": histogram,
            "ranked": [_name_rows(entry, rows, pids, camids, paths) for entry in ranked],
        }
    return {
        "data": {
            "name": data.manifest["name"],
            "hash": data.hash,
            "split": "test",
            "images": len(rows),
            "identities": len(set(pids)),
            **{name: int((modalities == name).sum()) for name in MODALITIES},
        },
        "protocol": {
            "name": "folder",
            "trials": protocol.trials,
            "shots": protocol.shots,
            "camera_rule": protocol.camera_rule,
            "cmc": protocol.cmc,
            "seed": protocol.seed,
            "feature": "BNNeck, L2-normalised",
            "distance": "cosine",
            "flip": False,
            "rerank": False,
            "image_size": list(image_size),
        },
        "directions": directions,
    }


def protocol_of(recipe: config.Recipe) -> FolderProtocol:
    """The recipe's protocol; its gallery draws follow from the recipe's seed."""
    settings = recipe.evaluation
    return FolderProtocol(
        trials=settings.trials,
        shots=settings.shots,
        camera_rule=settings.camera_rule,
        cmc=settings.cmc,
        seed=recipe.seed,
    )


def result_path(run: Run, name: str) -> Storage:
    """Where the result of a checkpoint is written."""
    return run.location / "eval" / f"{name}.json"


def _describe(result: DirectionResult) -> dict[str, Any]:
    return {
        "mean": result.mean(),
        "std": result.std(),
        "queries": result.queries,
        "skipped": result.skipped,
        "trials": [
            {"cmc": t.cmc.tolist(), "mAP": t.mAP, "mINP": t.mINP, "queries": t.queries, "skipped": t.skipped}
            for t in result.trials
        ],
    }


def _name_rows(
    entry: dict[str, Any], rows: np.ndarray, pids: np.ndarray, camids: np.ndarray, paths: np.ndarray
) -> dict[str, Any]:
    def named(item: dict[str, Any]) -> dict[str, Any]:
        i = item["row"]
        place = {"row": int(rows[i]), "identity": str(pids[i]), "camera": str(camids[i]), "path": str(paths[i])}
        return item | place

    return {"query": named(entry["query"]), "gallery": [named(item) for item in entry["gallery"]]}


if __name__ == "__main__":
    run_command(command)
