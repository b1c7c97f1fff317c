"""A sweep's folder: its definition, which a resumed command must match, and its results.

<storage>/sweeps/<name>/  sweep.json  status.json  results.json  table.md  best.yaml  *.png  *.pdf  tune/  logs/
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icre import config
from icre.errors import DataError, UserError
from pipelines.experiments.plan import listed_trials
from pipelines.experiments.trial import Sweep, Trial
from pipelines.runs.provenance import code_version, now
from pipelines.storage import Storage

if TYPE_CHECKING:
    from pipelines.data.prepared import PreparedData

DEFINITION = "sweep.json"
STATUS = "status.json"
MAY_CHANGE = (
    "storage",
    "data.root",
    "telemetry",
    "retrain",
    "tune.concurrent",
    "tune.hours",
    "tune.cpu_hour_price",
    "tune.gpu_hour_price",
)
"""Keys and sections that may differ when a sweep resumes."""


def sweeps(storage: Storage) -> Storage:
    """Folder of all sweeps."""
    return storage / "sweeps"


def sweep_of(recipe: config.Recipe, name: str, trials: Sequence[Trial]) -> Sweep:
    """The sweep ``name`` of ``recipe``, started or not."""
    location = (sweeps(Storage(recipe.storage)) / name).url
    argv = (Path(sys.argv[0]).name, *sys.argv[1:])
    return Sweep(name, location, recipe.to_dict(), argv, tuple(trials))


def begin(sweep: Sweep, data: PreparedData) -> None:
    """Write the sweep's definition unless it exists."""
    path = Storage(sweep.location) / DEFINITION
    if path.exists():
        return
    path.write_json(
        {
            "name": sweep.name,
            "created": now(),
            "argv": list(sweep.argv),
            "code": code_version(),
            "recipe": sweep.recipe,
            "data": {"hash": data.hash, "synthetic": data.manifest["synthetic"]},
        }
    )


def check_same(sweep: Sweep, data: PreparedData) -> None:
    """Raises UserError when the folder has a sweep with another recipe or space, DataError for other images."""
    path = Storage(sweep.location) / DEFINITION
    if not path.exists():
        return
    definition = path.read_json()
    hint = "give this one another name with --sweep, or remove the other's folder"
    before = config.parse_recipe(definition["recipe"], where=f"sweep {sweep.name}")
    differing = config.differences(before, sweep.base)
    refused = sorted(key for key in differing if not _may_change(key))
    if refused:
        said = ", ".join(f"{key} ({differing[key][0]!r} there, {differing[key][1]!r} now)" for key in refused)
        raise UserError(f"sweep {sweep.name} exists at {sweep.location} with other settings: {said}", hint=hint)
    if definition["data"]["hash"] != data.hash:
        raise DataError(f"sweep {sweep.name} exists at {sweep.location} with other images", hint=hint)


def open_sweep(storage: Storage, name: str) -> tuple[Sweep, dict[str, Any]]:
    """A started sweep and its definition. Raises DataError when there is none."""
    folder = sweeps(storage)
    path = folder / name / DEFINITION
    if not path.exists():
        known = folder.list()
        raise DataError(f"no sweep {name!r} in {folder.url}", hint=f"sweeps there: {', '.join(known) or 'none'}")
    definition = path.read_json()
    recipe = config.parse_recipe(definition["recipe"] | {"storage": storage.url}, where=path.url)
    return sweep_of(recipe, name, listed_trials(recipe, name)), definition


def _may_change(key: str) -> bool:
    return key in MAY_CHANGE or key.partition(".")[0] in MAY_CHANGE
