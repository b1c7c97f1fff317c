"""Scatter plots of the features of a few identities, one panel per model (the paper's Figure 4 d-f)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from icre.figures import style

COLOURS = (*style.CYCLE, style.INK)
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<")
"""One more than the colours: 56 identities differ in at least one of the two, seven in both."""
AREA = 18.0
"""Area of a mark, square points."""


@dataclass(frozen=True, eq=False)
class Scatter:
    """Points of one model."""

    label: str
    points: NDArray[np.float64]
    """(n, 2) positions."""
    identities: Sequence[str]
    """Identity of each point."""
    infrared: Sequence[bool]
    """Whether each point is an infrared image."""


@style.styled
def feature_scatter(models: Sequence[Scatter]) -> Figure:
    """One panel per model, three in a row. Colour and shape encode the identity, the same in all panels.

    Filled marks are visible images, hollow ones infrared. The axes have no meaning and no numbers. Each panel is
    scaled to its own points.
    """
    figure, panels = style.panels(max(1, len(models)), width_in=style.PAGE_IN, height_in=2.5, columns=3)
    if not models:
        style.say(panels[0], "nothing embedded yet")
        return figure
    people = sorted({identity for model in models for identity in model.identities})
    for axes, model in zip(panels, models, strict=True):
        style.title(axes, model.label, beside=min(3, len(models)))
        _panel(axes, model, people)
    _legend(figure, people)
    return figure


def _panel(axes: Axes, model: Scatter, people: Sequence[str]) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.margins(0.06)
    identities, infrared = np.array(model.identities), np.array(model.infrared, dtype=bool)
    for number, identity in enumerate(people):
        for hollow in (False, True):
            x, y = model.points[(identities == identity) & (infrared == hollow)].T
            look = _look(number, hollow=hollow)
            axes.scatter(x, y, s=AREA, marker=look["marker"], linewidths=0.9, alpha=0.9,
                         facecolors=look["fill"], edgecolors=look["color"])  # fmt: skip


def _look(number: int, *, hollow: bool) -> dict[str, Any]:
    colour = COLOURS[number % len(COLOURS)]
    return {"marker": SHAPES[number % len(SHAPES)], "color": colour, "fill": "none" if hollow else colour}


def _legend(figure: Figure, people: Sequence[str]) -> None:
    kinds = [_key("visible", "o", style.MUTED, style.MUTED), _key("infrared", "o", style.MUTED, "none")]
    looks = [_look(number, hollow=False) for number in range(len(people))]
    handles = [
        _key(style.fitted(name, 0.9, size=7.0), look["marker"], look["color"], look["fill"])
        for name, look in zip(people, looks, strict=True)
    ]
    style.figure_legend(figure, [*kinds, *handles], handlelength=1.0)


def _key(name: str, marker: str, colour: str, fill: str) -> Line2D:
    return Line2D(
        [], [], linestyle="none", marker=marker, markersize=4.2, color=colour, markerfacecolor=fill, label=name
    )
