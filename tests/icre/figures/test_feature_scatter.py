from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from icre.figures import Scatter, encode, feature_scatter

Look = tuple[tuple[float, ...], bytes]


def model(label: str, people: Sequence[str], seed: int = 0) -> Scatter:
    """Three images of each person, the last in infrared."""
    points = np.random.default_rng(seed).normal(size=(3 * len(people), 2))
    return Scatter(label, points, [p for p in people for _ in range(3)], [False, False, True] * len(people))


def marks(axes: Axes) -> dict[tuple[float, float], tuple[Look, bool]]:
    """Place of each point to colour and shape, and whether it is hollow."""
    found = {}
    for collection in axes.collections:
        assert isinstance(collection, PathCollection)
        shape = np.asarray(collection.get_paths()[0].vertices).round(6).tobytes()
        for x, y in np.asarray(collection.get_offsets()):
            colour = tuple(np.asarray(collection.get_edgecolor())[0])
            found[float(x), float(y)] = ((colour, shape), len(np.asarray(collection.get_facecolor())) == 0)
    return found


def looks(axes: Axes, shown: Scatter) -> dict[str, set[Look]]:
    drawn = marks(axes)
    found: dict[str, set[Look]] = {}
    for (x, y), identity in zip(shown.points, shown.identities, strict=True):
        found.setdefault(identity, set()).add(drawn[float(x), float(y)][0])
    return found


def test_every_point_is_in_its_place_filled_if_visible_and_hollow_if_infrared() -> None:
    shown = model("m", ["b", "a"])
    drawn = marks(feature_scatter([shown]).axes[0])
    assert len(drawn) == 6
    assert [drawn[float(x), float(y)][1] for x, y in shown.points] == list(shown.infrared)


def test_an_identity_looks_the_same_in_all_panels_and_unlike_any_other() -> None:
    # Each model knows somebody whom the other does not, and not in the same order.
    models = [model("one", ["c", "e", "a", "b"]), model("two", ["0", "b", "a", "c"], 1)]
    first, second = (looks(axes, m) for axes, m in zip(feature_scatter(models).axes, models, strict=True))
    assert all(len(found) == 1 for found in (*first.values(), *second.values()))
    assert all(first[name] == second[name] for name in "abc")
    assert len(set.union(*first.values(), *second.values())) == 5


def test_56_people_differ_in_colour_or_shape_and_seven_in_both() -> None:
    shown = model("m", [f"{n:02d}" for n in range(56)])
    found = [look for found in looks(feature_scatter([shown]).axes[0], shown).values() for look in found]
    assert len(set(found)) == 56
    assert len({colour for colour, _ in found[:7]}) == len({shape for _, shape in found[:7]}) == 7


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_names_modalities_and_people() -> None:
    names = legend(feature_scatter([model("m", ["$a$", "b"])]))
    assert sorted(names) == sorted(["visible", "infrared", "$a$", "b"])
    assert encode(feature_scatter([model("$m$", ["$a_$"])]), "svg")


def test_models_stand_three_in_a_row_and_none_is_said() -> None:
    rows = {round(axes.get_position().y0, 3) for axes in feature_scatter([model(str(i), ["a"]) for i in range(3)]).axes}
    assert len(rows) == 1
    assert len(feature_scatter([]).axes[0].texts) == 1
