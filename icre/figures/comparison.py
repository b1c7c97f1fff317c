"""Comparison of trainings: loss and validation metrics over the steps."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from icre.figures import style
from icre.figures.training import Rows, dots, running_mean, series, smoothing_window

PANELS = (
    ("Loss", "step", "loss"),
    ("Validation rank-1, %", "validation", "rank1"),
    ("Validation mAP, %", "validation", "mAP"),
)
"""Title, row kind and key of each panel."""


@style.styled
def training_comparison(runs: Mapping[str, Rows]) -> Figure:
    """Three panels with one curve per run, from the rows of their metrics.jsonl.

    The total loss as a running mean, validation rank-1 and mAP in percent. A run has the same colour and dashes in all
    panels. A panel without rows shows a message.
    """
    figure, panels = style.panels(len(PANELS), width_in=style.PAGE_IN, height_in=2.35)
    for axes, (title, kind, key) in zip(panels, PANELS, strict=True):
        axes.set_title(title)
        axes.set_xlabel("step")
        _panel(axes, {name: [row for row in rows if row["kind"] == kind] for name, rows in runs.items()}, key)
    handles = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    if handles:
        style.figure_legend(figure, [handles[name] for name in runs if name in handles], handlelength=3.2)
    return figure


def _panel(axes: Axes, runs: Mapping[str, Rows], key: str) -> None:
    if not any(runs.values()):
        style.say(axes, "nothing logged yet")
        return
    for index, (name, rows) in enumerate(runs.items()):
        x, y = series(rows, key)
        if len(y):
            y = running_mean(y, smoothing_window(len(y))) if key == "loss" else 100 * y
            axes.plot(x, y, label=name, **style.curve(index), **dots(len(y)), markersize=2.5)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
