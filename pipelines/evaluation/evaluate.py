"""Evaluation of a run's checkpoint; the result is written to the run's eval/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icre import config
from icre.data.sources import sysu
from icre.data.sources.permutations import read_permutations
from icre.errors import DataError
from icre.evaluation import protocol_of
from icre.evaluation.gallery_sampling import Permutations
from pipelines.data.prepared import PreparedData, open_data
from pipelines.evaluation.features import features_of, model_hash
from pipelines.evaluation.measure import measure
from pipelines.runs.networks import load_network
from pipelines.runs.run import CLASSES, UNTRAINED, Run
from pipelines.runtime.command import override_recipe
from pipelines.runtime.console import say
from pipelines.storage import Storage


def evaluated_recipes(
    run: Run, storage: str, overrides: Sequence[str] = (), protocols: Sequence[str] | None = None
) -> list[config.Recipe]:
    """The run's own recipe with ``overrides`` on top, in the storage it was found in; one per protocol."""
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
    """Evaluate one checkpoint and write ``eval/<name>-<protocol>.json``; inside an open Ray session for its workers.

    Raises DataError when the run was trained on an identity that this data set now tests.
    """
    data = open_data(recipe)
    changes = [] if name == UNTRAINED else _changes_since_training(run, data)
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
    result["data"]["changes"] = changes
    for difference in [*result["data"]["differences"], *changes]:
        say(f"warning: {difference}")
    result_path(run, name, recipe).write_json(result)
    return result


def _changes_since_training(run: Run, data: PreparedData) -> list[str]:
    """A sentence if the run was trained on other data. Raises DataError for test identities that it was trained on."""
    trained = run.manifest["data"]
    if data.hash == trained["hash"]:
        return []
    if data.manifest["name"] != trained["name"]:  # identities of two data sets may share names
        return [f"Run {run.name} was trained on another data set, {trained['name']}."]
    seen = (run.location / CLASSES).read_json(default={"seen": []})["seen"]
    leaked = sorted({record.pid for record in data.records(data.rows_of("test"))} & set(seen))
    if leaked:
        raise DataError(
            f"{data.location.url}: run {run.name} was trained on {len(leaked)} of its test identities: "
            f"{', '.join(leaked[:5])}{', …' if len(leaked) > 5 else ''}",
            hint="it was prepared again with another split: prepare that of the training under another data.name, or "
            "train again",
        )
    return [f"Data set {trained['name']} was prepared again after run {run.name} was trained."]


def permutations_of(recipe: config.Recipe) -> Permutations | None:
    """The official draws of SYSU-MM01, stored next to the source images; None without ``data.root``."""
    return None if recipe.data.root is None else read_permutations(Path(recipe.data.root) / sysu.PERMUTATIONS)


def result_path(run: Run, name: str, recipe: config.Recipe) -> Storage:
    """Location of the result of a checkpoint."""
    settings = recipe.evaluation
    options = [option for option in ("flip", "rerank") if getattr(settings, option)]
    return run.location / "eval" / f"{'-'.join([name, settings.protocol, *options])}.json"
