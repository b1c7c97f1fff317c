"""Create a new run after cheap up-front checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from icre import config
from icre.data.plan import plan_epoch
from icre.data.records import MODALITIES
from icre.errors import ConfigError, DataError
from pipelines.data.prepared import PreparedData, open_data
from pipelines.runs.run import Run, create_run, runs_of
from pipelines.runtime.console import say
from pipelines.storage import Storage


def start(recipe: config.Recipe, name: str | None, *, lineage: Mapping[str, Any] | None = None) -> Run:
    """Check everything that can be checked without a worker, then create the run folder.

    lineage: additional manifest entries, such as the sweep the run belongs to.
    """
    recipe = as_started(recipe)
    data = open_data(recipe)
    check_images(recipe, data)
    if recipe.model.weights is not None:
        # Building the network here detects a mismatched weights file before anything is written.
        from pipelines.runs.networks import initial_network

        initial_network(recipe, classes=len(data.classes))
    runs_of(Storage(recipe.storage)).check_writable()
    run = create_run(recipe, name, data=data.manifest, data_url=data.location.url, lineage=lineage)
    say(f"train: run {run.name}, recipe in {(run.location / 'config.yaml').url}")
    return run


def check_images(recipe: config.Recipe, data: PreparedData) -> None:
    """Raises ConfigError or DataError when ``data`` does not allow training the recipe or selecting a best epoch."""
    _check_size(recipe, data)
    _check_validation(data)


def steps_per_epoch(recipe: config.Recipe, data: PreparedData) -> int:
    """Steps per epoch: the recipe's setting, or the field's usual definition for this data."""
    batch = recipe.batch
    return recipe.train.steps_per_epoch or data.training_index().steps(
        visible=batch.visible, infrared=batch.infrared, identities=batch.identities
    )


def as_started(recipe: config.Recipe) -> config.Recipe:
    """The recipe that a run stores: ``recipe`` without its tune settings."""
    return recipe.model_copy(update={"tune": config.Tune()})


def _check_validation(data: PreparedData) -> None:
    rows = data.rows_of("val")
    if not rows:
        return
    labels = data.labels.take(rows).select(["identity", "modality"]).to_pylist()
    seen = [{row["identity"] for row in labels if row["modality"] == modality} for modality in MODALITIES]
    if not seen[0] & seen[1]:
        raise DataError(
            f"{data.location.url}: none of the {len(seen[0] | seen[1])} validation identities has both modalities, "
            "so no epoch could be called the best",
            hint="move identities with visible and infrared images to the val split, or leave it empty; prepare again",
        )


def _check_size(recipe: config.Recipe, data: PreparedData) -> None:
    resized = data.manifest.get("store", "resized") == "resized"
    for key in ("height", "width") if resized else ():
        asked, stored = getattr(recipe.data, key), data.manifest[key]
        if asked != stored:
            raise ConfigError(
                f"data.{key}={asked}, but {data.location.url} was prepared at {stored}",
                hint=f"set data.{key}={stored}, or prepare again (under another data.name to keep both)",
            )
    # Drawing the first epoch rejects a batch with more identities than the data has.
    batch = recipe.batch
    plan_epoch(
        data.training_index(),
        identities=batch.identities,
        visible=batch.visible,
        infrared=batch.infrared,
        steps=1,
        seed=recipe.seed,
        epoch=0,
    )
