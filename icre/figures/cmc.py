"""CMC curves: share of queries with a match among the first k gallery images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from icre.figures import style

LABEL_IN = 1.9
"""Width of a label in the legend of a column, before the rank-1; inches."""


@style.styled
def cmc_curves(curves: Mapping[str, Sequence[float] | NDArray[np.float64]]) -> Figure:
    """One curve per label: ``cmc[k-1]`` is CMC@k in [0, 1], drawn in percent over k = 1, 2, ...

    The legend lists the curves from best to worst rank-1, with that value.
    """
    figure, (axes,) = style.panels(1, width_in=style.COLUMN_IN, height_in=2.1 + style.LINE_IN * len(curves))
    for index, (label, cmc) in enumerate(curves.items()):
        percent = 100 * np.asarray(cmc, dtype=np.float64)
        axes.plot(
            np.arange(1, len(percent) + 1),
            percent,
            marker="o",
            markersize=2.5,
            label=f"{style.fitted(label, LABEL_IN, size=7.0)}, rank-1 {percent[0]:.1f} %",
            **style.curve(index),
        )
    axes.set(xlabel="rank k", ylabel="CMC@k, %", ylim=(0, 100))
    longest = max((len(cmc) for cmc in curves.values()), default=1)
    axes.set_xticks([1, *range(5, longest + 1, 5)])
    if not curves:
        style.say(axes, "nothing evaluated yet")
        return figure
    # Below the axes, the legend hides no curve.
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: -float(np.asarray(list(curves.values())[i])[0]))
    legend = figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside lower left", handlelength=3.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
