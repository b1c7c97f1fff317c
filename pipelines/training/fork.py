"""A new run that goes on from another run's checkpoint, by a recipe with other values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from icre import config
from icre.training import checkpoint
from pipelines.runs import Run, runs
from pipelines.storage import Storage
from pipelines.training import launch
from pipelines.training.saver import folder_name


def fork(
    source: Run, recipe: config.Recipe, name: str, *, step: int, lineage: Mapping[str, Any], exact: bool = False
) -> Run:
    """The run ``name`` with ``source``'s weights, optimiser and step; its own if it was begun before.

    step: the checkpoint to take, or, where it is gone by now and not ``exact``, the newest. The best epoch is looked
    for anew: what was reached by other values is no result of this recipe.
    Raises DataError when ``source`` has no such checkpoint.
    """
    run = Run(runs(Storage(recipe.storage)) / name)
    if run.reference("last") is not None:
        return run
    wanted = folder_name(step)
    kept = (source.location / "checkpoints" / wanted / checkpoint.META).exists()
    with source.checkpoint(wanted if kept or exact else "last") as (folder, meta):
        progress = replace(checkpoint.progress_of(meta), best_metric=None, best_step=None)
        taken = folder_name(progress.step)
        if not (run.location / "manifest.json").exists():
            origin = (source.location / "checkpoints" / taken).url
            taken_from = {"run": source.name, "step": progress.step}
            parents = [*lineage.get("parents", []), origin]
            launch.start(recipe, name, lineage={**lineage, "fork": taken_from, "parents": parents})
        _copy(folder, meta | {"progress": asdict(progress)}, run.location / "checkpoints" / taken)
    run.write_metrics(row for row in source.metrics() if row["step"] <= progress.step and row["kind"] == "step")
    run.point("last", taken)
    return run


def _copy(folder: Path, meta: Mapping[str, Any], target: Storage) -> None:
    for name in meta["files"]:
        (target / name).upload(folder / name)
    (target / checkpoint.META).write_json(dict(meta))
