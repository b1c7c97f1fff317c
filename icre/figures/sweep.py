"""Rank-1 and mAP against the value of a hyper-parameter (the paper's Figure 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icre.figures import style
from icre.statistics import Spread

METRICS = {"rank1": "rank-1", "mAP": "mAP"}
MARKERS = ("o", "s")
APART = 0.07
"""Half the distance between the marks of the two metrics at one value, to keep both error bars visible."""


@dataclass(frozen=True)
class Sweep:
    """One hyper-parameter and the results of its values."""

    name: str
    """Axis label: "λ"."""
    points: Mapping[float, Mapping[str, Sequence[float]]]
    """Value to metric ("rank1", "mAP") to one result in [0, 1] per seed; an empty list if there are none yet."""
    chosen: float | None = None
    """Value in the recipe."""


@style.styled
def sweep_curves(sweeps: Sequence[Sweep], *, split: str = "test") -> Figure:
    """One panel per hyper-parameter: mean over the seeds in percent, bars of one sample standard deviation.

    Values are spaced evenly in ascending order, as they often crowd at one end. The chosen one has a grey band. Values
    with one seed have no bar, values without results are omitted. split: name of the evaluated split, for the axis.
    """
    figure, panels = style.panels(max(1, len(sweeps)), width_in=style.PAGE_IN, height_in=2.5, columns=2)
    if not sweeps:
        style.say(panels[0], "nothing swept yet")
        return figure
    for axes, sweep in zip(panels, sweeps, strict=True):
        _panel(axes, sweep, split)
    handles = {str(bars.get_label()): bars for axes in panels for bars in axes.containers}
    if handles:
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=len(handles))
    return figure


def _panel(axes: Axes, sweep: Sweep, split: str) -> None:
    values = sorted(value for value, reached in sweep.points.items() if any(reached.values()))
    axes.set_xlabel(style.fitted(sweep.name, style.PAGE_IN / 2 - 0.5, size=7.5), parse_math=False)
    if not values:
        style.say(axes, "nothing swept yet")
        return
    axes.set_ylabel(f"% ({split})")
    axes.set(xlim=(-0.5, len(values) - 0.5), xticks=range(len(values)))
    axes.set_xticklabels([f"{value:g}" for value in values])
    if sweep.chosen in values:
        place = values.index(sweep.chosen)
        axes.axvspan(place - 0.3, place + 0.3, color=style.HAIRLINE, alpha=0.7, linewidth=0, zorder=0)
        axes.get_xticklabels()[place].set(weight="bold", color=style.INK)
    for index, (metric, label) in enumerate(METRICS.items()):
        reached = [(i, Spread.of(seeds)) for i, value in enumerate(values) if (seeds := sweep.points[value][metric])]
        axes.errorbar(
            np.array([i for i, _ in reached]) + APART * (2 * index - 1),
            [100 * spread.mean for _, spread in reached],
            yerr=[math.nan if spread.std is None else 100 * spread.std for _, spread in reached],
            marker=MARKERS[index],
            capsize=2.0,
            elinewidth=0.9,
            label=label,
            **style.curve(index),
        )
