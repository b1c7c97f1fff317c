"""A sweep's folder: what was asked for, so that the same command goes on and another one is refused; the results.

<storage>/sweeps/<name>/  sweep.json  status.json  results.json  table.md  best.yaml  *.png  *.pdf  tune/  logs/
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icre import config, figures
from icre.config import Interval
from icre.errors import DataError, UserError
from icre.search import value_of
from pipelines.data.prepared import PreparedData
from pipelines.reporting.plates import PRINTED
from pipelines.reporting.sweep_table import sweep_table_markdown
from pipelines.runs import Run, code_version, now, runs
from pipelines.storage import Storage
from pipelines.tuning.outcomes import Group, chosen, grouped, outcomes_of
from pipelines.tuning.plan import listed_trials
from pipelines.tuning.trial import Sweep, Trial

DEFINITION = "sweep.json"
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
"""Keys, and sections, that may differ when a sweep goes on."""


def sweeps(storage: Storage) -> Storage:
    """Where sweeps live."""
    return storage / "sweeps"


def sweep_of(recipe: config.Recipe, name: str, trials: Sequence[Trial]) -> Sweep:
    """The sweep ``name`` of ``recipe``, begun or not."""
    location = (sweeps(Storage(recipe.storage)) / name).url
    argv = (Path(sys.argv[0]).name, *sys.argv[1:])
    return Sweep(name, location, recipe.to_dict(), argv, tuple(trials))


def begin(sweep: Sweep, data: PreparedData) -> None:
    """Write down what is asked for; nothing if it is there."""
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
    """Raises UserError when the folder has a sweep of another recipe or space, DataError for other images."""
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
    """A sweep that was begun, and its definition. Raises DataError when there is none."""
    folder = sweeps(storage)
    path = folder / name / DEFINITION
    if not path.exists():
        known = folder.list() if folder.exists() else []
        raise DataError(f"no sweep {name!r} in {folder.url}", hint=f"sweeps there: {', '.join(known) or 'none'}")
    definition = path.read_json()
    recipe = config.parse_recipe(definition["recipe"] | {"storage": storage.url}, where=path.url)
    return sweep_of(recipe, name, listed_trials(recipe, name)), definition


def summarise(sweep: Sweep, *, synthetic: bool) -> tuple[str, Group | None]:
    """Write results.json, table.md, best.yaml and the pictures; the table, and the best combination of values."""
    recipe, folder = sweep.base, Storage(sweep.location)
    outcomes = outcomes_of(sweep)
    groups = grouped(outcomes)
    best = chosen(groups, recipe)
    markdown = sweep_table_markdown(groups, recipe, synthetic=synthetic)
    (folder / "results.json").write_json([outcome.to_dict() for outcome in outcomes])
    (folder / "table.md").write_text(markdown + "\n")
    if best is not None:
        (folder / "best.yaml").write_text(_best_yaml(sweep, best))
    for name, figure in _pictures(recipe, groups, best).items():
        for kind in PRINTED:
            (folder / f"{name}.{kind}").write_bytes(figures.encode(figure, kind))
    return markdown, best


def runs_of(sweep: Sweep, group: Group) -> list[Run]:
    """The run of each seed."""
    return [Run(runs(Storage(sweep.base.storage)) / outcome.run) for outcome in group.outcomes]


def _best_yaml(sweep: Sweep, best: Group) -> str:
    (first, *_) = runs_of(sweep, best)
    spread, metric = best.spread(sweep.base.checkpoints.best), sweep.base.checkpoints.best
    assert spread is not None
    lines = [
        f"# The best of sweep {sweep.name}: {metric} {100 * spread.mean:.1f} % on the validation identities.",
        f"# From run {first.name}; `icre train --from-trial {first.name}` repeats that very training.",
    ]
    return "\n".join(lines) + "\n" + first.recipe.to_yaml()


def _pictures(recipe: config.Recipe, groups: Sequence[Group], best: Group | None) -> dict[str, Any]:
    space, metric = recipe.tune.space, recipe.checkpoints.best
    lines = [
        figures.Line(_full(recipe, group), spread.mean, is_best=group is best)
        for group in groups
        if (spread := group.spread(metric)) is not None
    ]
    logarithmic = [key for key, values in space.items() if isinstance(values, Interval) and values.log]
    drawn = {"parallel": figures.parallel_coordinates(lines, list(space), metric, logarithmic=logarithmic)}
    if recipe.tune.method == "each" or (recipe.tune.method == "grid" and len(space) == 1):
        panels = [curve for key in space if (curve := _curve(recipe, groups, key)) is not None]
        drawn |= {"sweep": figures.sweep_curves(panels, split="validation")} if panels else {}
    return drawn


def _curve(recipe: config.Recipe, groups: Sequence[Group], key: str) -> figures.Sweep | None:
    """A panel of Figure 3: the key's values, with the others as in the recipe. None for what is no number."""
    points = {}
    for group in groups:
        if set(group.labels) <= {key}:
            value = group.labels.get(key, value_of(recipe, key))
            if isinstance(value, bool) or not isinstance(value, int | float):
                return None
            points[float(value)] = {metric: group.values(metric) for metric in ("rank1", "mAP")}
    return figures.Sweep(key, points, chosen=float(value_of(recipe, key)))


def _full(recipe: config.Recipe, group: Group) -> dict[str, Any]:
    return {key: group.labels.get(key, value_of(recipe, key)) for key in recipe.tune.space}


def _may_change(key: str) -> bool:
    return key in MAY_CHANGE or key.partition(".")[0] in MAY_CHANGE
