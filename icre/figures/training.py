"""Training curves: loss terms, validation metrics and learning rate over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from icre.figures import style

NOT_LOSSES = frozenset({"step", "epoch", "lr", "time", "images_per_s", "data_wait_s"})
VALIDATION = {"rank1": "rank-1", "mAP": "mAP", "mINP": "mINP"}
SMOOTHING_SHARE = 1 / 40
LOG_SCALE_RATIO = 9.0

Rows = Sequence[Mapping[str, Any]]
Series = tuple[NDArray[np.float64], NDArray[np.float64]]


@style.styled
def training_curves(metrics: Rows) -> Figure:
    """Three panels from the rows of metrics.jsonl (docs/method.md section 2 names the loss terms).

    Rows of kind ``step``: every numeric key except bookkeeping is a loss term; ``lr`` is the learning
    rate. Rows of kind ``validation``: ``rank1``, ``mAP``, ``mINP`` in [0, 1], drawn in percent. Thin lines
    are the logged values, thick ones their running mean. A panel without rows shows a message.
    """
    steps = [row for row in metrics if row["kind"] == "step"]
    validations = [row for row in metrics if row["kind"] == "validation"]
    figure, (losses, scores, rate) = style.panels(3, width_in=style.PAGE_IN, height_in=2.35)
    _losses(losses, steps)
    _scores(scores, validations)
    _rate(rate, steps)
    for axes, rows in ((losses, steps), (scores, validations), (rate, steps)):
        axes.set_xlabel("step")
        if rows:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    return figure


def loss_terms(steps: Rows) -> list[str]:
    """Names of the loss terms, in order of appearance."""
    names = {
        name: None
        for row in steps
        for name, value in row.items()
        if name not in NOT_LOSSES and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return list(names)


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of the last ``window`` values at each position, or of all so far if there are fewer."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((total[ends] - total[starts]) / (ends - starts), dtype=np.float64)


def smoothing_window(points: int) -> int:
    """Window of the running mean for a number of points."""
    return max(1, round(points * SMOOTHING_SHARE))


def series(rows: Rows, name: str) -> Series:
    """Steps and values of a key, from the rows that have it."""
    present = [row for row in rows if row.get(name) is not None]
    x = np.array([row["step"] for row in present], dtype=np.float64)
    return x, np.array([row[name] for row in present], dtype=np.float64)


def _losses(axes: Axes, steps: Rows) -> None:
    axes.set_title("Loss terms")
    if not steps:
        style.say(axes, "no steps logged yet")
        return
    for index, name in enumerate(loss_terms(steps)):
        x, y = series(steps, name)
        window = smoothing_window(len(y))
        if window > 1:
            axes.plot(x, y, color=style.curve(index)["color"], linewidth=0.5, alpha=0.35)
        axes.plot(x, running_mean(y, window), label=name, **style.curve(index), **dots(len(y)))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    style.plain_legend(axes)


def _scores(axes: Axes, validations: Rows) -> None:
    axes.set_title("Validation, %")
    if not validations:
        style.say(axes, "not validated yet")
        return
    for index, (name, label) in enumerate(VALIDATION.items()):
        x, y = series(validations, name)
        axes.plot(x, 100 * y, label=label, **style.curve(index), **dots(len(y)))
    axes.set_ylim(0, 100)
    style.plain_legend(axes)


def _rate(axes: Axes, steps: Rows) -> None:
    axes.set_title("Learning rate")
    x, y = series(steps, "lr")
    if not len(y):
        style.say(axes, "no steps logged yet")
        return
    axes.plot(x, y, color=style.BLUE, **dots(len(y)))
    # On a linear axis, a schedule with drops by ten shows only its first part.
    if y.min() > 0 and y.max() / y.min() > LOG_SCALE_RATIO:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))


def dots(points: int) -> dict[str, Any]:
    """Marker style: points are marked while few enough to distinguish; a single point needs a marker."""
    return {"marker": "o"} if points <= 30 else {}
