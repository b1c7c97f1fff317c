"""Final results of a sweep, written to its folder: results.json, table.md, best.yaml and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from icre import config, figures
from icre.config import Interval
from pipelines.experiments.outcomes import Group, chosen, grouped, outcomes_of
from pipelines.experiments.search_space import value_of
from pipelines.experiments.sweep_table import sweep_table_markdown
from pipelines.experiments.trial import Sweep
from pipelines.reporting.figure_export import PRINTED
from pipelines.runs.run import Run
from pipelines.storage import Storage


def summarise(sweep: Sweep, *, synthetic: bool) -> tuple[str, Group | None]:
    """Write results.json, table.md, best.yaml and the figures; returns the table and the best combination of values."""
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


def runs_in(sweep: Sweep, group: Group) -> list[Run]:
    """The run of each seed."""
    return [Run.named(sweep.base.storage, outcome.run) for outcome in group.outcomes]


def _best_yaml(sweep: Sweep, best: Group) -> str:
    (first, *_) = runs_in(sweep, best)
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
    """A panel of Figure 3 over the key's values, other keys as in the recipe. None for non-numeric values."""
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
