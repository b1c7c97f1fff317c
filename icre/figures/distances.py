"""Histograms of cross-modal distances, as the paper's Figure 4 a-c (docs/method.md section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from icre.figures import style

Numbers = Sequence[float] | NDArray[np.float64]


class Distances(NamedTuple):
    """Distances between visible and infrared images under one model."""

    label: str
    edges: Numbers
    """Bin edges (bins + 1)."""
    intra: Numbers
    """Counts of pairs of the same person (bins)."""
    inter: Numbers
    """Counts of pairs of different people (bins)."""
    intra_mean: float
    inter_mean: float


@style.styled
def distance_histograms(
    models: Sequence[Distances | tuple[str, Numbers, Numbers, Numbers, float, float]],
) -> Figure:
    """One panel per model: same person blue, different people green, their means as lines.

    Heights are percentages of the pairs of each kind, since there are far more pairs of different people. All panels
    have the same distance axis for comparison, with three panels in a row.
    """
    known = [Distances(*model) for model in models]
    figure, panels = style.panels(max(1, len(known)), width_in=style.PAGE_IN, height_in=2.5, columns=3)
    if not known:
        style.say(panels[0], "nothing evaluated yet")
        return figure
    for axes, model in zip(panels, known, strict=True):
        style.title(axes, model.label, beside=min(3, len(known)), pad=16)
        _histogram(axes, model)
        axes.sharex(panels[0])
        # A network with nearly equal features fills a single bin and would flatten the others on a shared scale.
        highest = max(_shares(counts).max() for counts in (model.intra, model.inter))
        axes.set_ylim(0, 1.08 * highest or 1)
    panels[0].set(xlim=_span(known), ylabel="share of pairs, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _histogram(axes: Axes, model: Distances) -> None:
    gap = model.inter_mean - model.intra_mean
    note = f"means {model.intra_mean:.3f} and {model.inter_mean:.3f}, gap {gap:.3f}"
    axes.text(0, 1.02, note, transform=axes.transAxes, color=style.MUTED)
    axes.set_xlabel("distance")
    kinds = (
        ("same person", model.intra, model.intra_mean, style.BLUE, "solid"),
        ("different people", model.inter, model.inter_mean, style.GREEN, "dashed"),
    )
    for name, counts, mean, colour, line in kinds:
        shares = _shares(counts)
        axes.stairs(shares, np.asarray(model.edges), fill=True, color=colour, alpha=0.35, linewidth=0)
        axes.stairs(shares, np.asarray(model.edges), color=colour, linewidth=1.1, label=name)
        axes.axvline(mean, color=colour, linestyle=line, linewidth=1.4, label=f"mean, {name}")


def _shares(counts: Numbers) -> NDArray[np.float64]:
    values = np.asarray(counts, dtype=np.float64)
    return np.asarray(100 * values / max(values.sum(), 1.0))


def _span(models: Sequence[Distances]) -> tuple[float, float]:
    """Range from the first to the last bin with a pair in any model, padded by one bin."""
    low, high = [], []
    for model in models:
        edges = np.asarray(model.edges, dtype=np.float64)
        filled = np.flatnonzero(np.asarray(model.intra) + np.asarray(model.inter))
        first, last = (filled[0], filled[-1] + 1) if len(filled) else (0, len(edges) - 1)
        low.append(float(edges[max(0, first - 1)]))
        high.append(float(edges[min(len(edges) - 1, last + 1)]))
    return min(low), max(high)
