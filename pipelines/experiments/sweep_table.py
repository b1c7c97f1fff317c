"""A sweep's Markdown table: one row per combination of values, best first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from icre import config
from icre.config.reading import short
from pipelines.experiments.outcomes import Group, chosen
from pipelines.reporting.metric_table import SYNTHETIC, percent
from pipelines.runtime.markdown import markdown_table

METRICS = {"mAP": "mAP", "rank1": "Rank-1", "mINP": "mINP"}


def sweep_table_markdown(groups: Sequence[Group], recipe: config.Recipe, *, synthetic: bool) -> str:
    """Validation metrics in percent, mean ± sample standard deviation over seeds, followed by causes of failures."""
    keys = list(recipe.tune.space)
    best = chosen(groups, recipe)
    head = ["", *keys, "Epochs", *METRICS.values(), "State"]
    lines = []
    for group in sorted(groups, key=lambda group: _order(group, recipe)):
        mark = "**best**" if group is best else ""
        values = [short(group.labels[key]) if key in group.labels else "·" for key in keys]
        lines.append([mark, *values, _epochs(group), *(_cell(group, metric) for metric in METRICS), _states(group)])
    notes = [
        "Percent, on the validation identities: training identities that were held out. The best epoch of each "
        f"training by {METRICS[recipe.checkpoints.best]}"
        + ("; ± is the sample standard deviation over the seeds." if recipe.tune.seeds > 1 else ".")
        + (" · is the recipe's own value." if recipe.tune.method == "each" else ""),
        *([SYNTHETIC] if synthetic else []),
        *(
            f"{outcome.run} failed: {(outcome.error or '').splitlines()[0]}"
            for group in groups
            for outcome in group.outcomes
            if outcome.state == "failed"
        ),
    ]
    return "\n\n".join([markdown_table(head, lines, numbers=range(1, len(head) - 1)), *notes])


def _order(group: Group, recipe: config.Recipe) -> float:
    spread = group.spread(recipe.checkpoints.best)
    return 1.0 if spread is None else -spread.mean


def _cell(group: Group, metric: str) -> str:
    spread = group.spread(metric)
    return "-" if spread is None else percent(spread.mean, spread.std)


def _epochs(group: Group) -> str:
    fewest, most = (pick(outcome.epochs for outcome in group.outcomes) for pick in (min, max))
    return str(most) if fewest == most else f"{fewest}-{most}"


def _states(group: Group) -> str:
    counts = Counter(outcome.state for outcome in group.outcomes)
    return ", ".join(state if len(group.outcomes) == 1 else f"{count} {state}" for state, count in counts.items())
