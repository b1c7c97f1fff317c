"""Parallel coordinates: one line per training, through its hyper-parameters to its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from icre.config.reading import short
from icre.figures import style

MOST_TICKS = 7


@dataclass(frozen=True)
class Line:
    """One training."""

    values: Mapping[str, Any]
    """Hyper-parameter to value; a missing one leaves a gap at its axis."""
    reached: float
    """Metric value in [0, 1]."""
    is_best: bool = False


@style.styled
def parallel_coordinates(
    lines: Sequence[Line], keys: Sequence[str], metric: str, *, logarithmic: Sequence[str] = ()
) -> Figure:
    """One axis per key and, last, ``metric`` in percent, which also colours the lines; the best line is thick.

    Numbers are spaced by value, or by logarithm for the keys in ``logarithmic``; words are spaced evenly.
    """
    figure, (axes,) = style.panels(1, width_in=style.PAGE_IN, height_in=2.8, columns=1)
    if not lines:
        style.say(axes, "no training has a result yet")
        return figure
    scales = [_Scale([line.values[key] for line in lines if key in line.values], key in logarithmic) for key in keys]
    reached = [100 * line.reached for line in lines]
    scales.append(_Scale(reached, False))
    shade, span = colormaps["viridis"], max(reached) - min(reached) + 1e-9
    for line, value in sorted(zip(lines, reached, strict=True), key=lambda pair: pair[1]):
        held = [line.values.get(key) for key in keys]
        heights = [np.nan if v is None else scale.place(v) for v, scale in zip([*held, value], scales, strict=True)]
        axes.plot(
            heights,
            color=shade((value - min(reached)) / span),
            linewidth=2.4 if line.is_best else 1.0,
            marker="o",
            markersize=3.5 if line.is_best else 2.0,
            zorder=3 if line.is_best else 2,
        )
    axes.set(xlim=(-0.3, len(scales) - 0.6), ylim=(-0.05, 1.05), yticks=[])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    names = [*keys, f"{metric} %"]
    room = style.PAGE_IN / len(names) - 0.1
    axes.set_xticks(range(len(names)), [style.fitted(name, room, size=7.5) for name in names], parse_math=False)
    axes.tick_params(axis="x", length=0)
    for place, scale in enumerate(scales):
        axes.axvline(place, color=style.HAIRLINE, linewidth=0.8, zorder=1)
        for value in scale.ticks():
            axes.annotate(
                style.fitted(short(value), room - 0.1, size=6.5),
                (place, scale.place(value)),
                xytext=(4, 0),
                textcoords="offset points",
                size=6.5,
                color=style.MUTED,
                va="center",
                parse_math=False,
                zorder=4,
                path_effects=[withStroke(linewidth=1.5, foreground="white")],  # lines cross the labels
            )
    return figure


class _Scale:
    """Map from a value to its height on an axis, 0 to 1."""

    def __init__(self, values: Sequence[Any], logarithmic: bool) -> None:
        self._numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        self._log = logarithmic and self._numeric and all(value > 0 for value in values)
        unique = {short(value): value for value in values}
        self._values = sorted(unique.values()) if self._numeric else [unique[name] for name in sorted(unique)]
        self._order = {short(value): place for place, value in enumerate(self._values)}

    def place(self, value: Any) -> float:
        """Height of a value; a single value is in the middle."""
        if len(self._values) < 2:
            return 0.5
        if not self._numeric:
            return self._order[short(value)] / (len(self._values) - 1)
        low, high, own = (
            float(np.log(v)) if self._log else float(v) for v in (*self._values[:: len(self._values) - 1], value)
        )
        return (own - low) / (high - low)

    def ticks(self) -> list[Any]:
        """All values if there are few, else a selection spread over the axis."""
        if len(self._values) <= MOST_TICKS:
            return self._values
        if not self._numeric:
            return self._values[:: -(-len(self._values) // MOST_TICKS)]
        low, high = self._values[0], self._values[-1]
        spaced = np.geomspace(low, high, 5) if self._log else np.linspace(low, high, 5)
        return [float(value) for value in spaced]
