from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from icre.data.records import Record
from icre.evaluation import Protocol, diagnostics, draw_gallery, evaluate_ranking
from icre.evaluation.diagnostics import camera_pairs, distance_histogram, ranked_lists

NAMES = {"visible_to_infrared": ("visible", "infrared"), "infrared_to_visible": ("infrared", "visible")}


class Images:
    """Random images of a few identities, cameras and both modalities, their rows in no order."""

    def __init__(self, count: int = 60, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.pids = rng.choice([f"{n:04d}" for n in range(7)], count)
        self.camids = rng.choice(["1", "2", "3"], count)
        self.modalities = rng.choice(["visible", "infrared"], count)
        self.paths = [f"{name}.jpg" for name in rng.permutation(count)]
        self.records = [
            Record(*map(str, row)) for row in zip(self.pids, self.modalities, self.camids, self.paths, strict=True)
        ]
        self.features = torch.from_numpy(rng.normal(size=(count, 5)) * rng.uniform(0.1, 9, (count, 1))).float()

    def rows(self, modality: str) -> list[int]:
        return [row for row, name in enumerate(self.modalities) if name == modality]

    def distance(self, a: int, b: int) -> float:
        x, y = self.features[a].tolist(), self.features[b].tolist()
        return 1 - sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))

    def ranked(self, protocol: Protocol, **options: object) -> list[dict]:
        return ranked_lists(self.features, self.records, protocol, **options)


# Histograms


@pytest.mark.parametrize("at_a_time", [1024, 7])
def test_histogram_counts_every_pair_of_modalities_once(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "QUERIES_AT_A_TIME", at_a_time)
    images = Images()
    counts = {"intra": [0] * 64, "inter": [0] * 64}
    distances: dict[str, list[float]] = {"intra": [], "inter": []}
    for a in images.rows("visible"):
        for b in images.rows("infrared"):
            kind = "intra" if images.pids[a] == images.pids[b] else "inter"
            distances[kind].append(images.distance(a, b))
            counts[kind][int(distances[kind][-1] / 2 * 64)] += 1
    found = distance_histogram(images.features, images.records)
    assert found["edges"] == pytest.approx([i / 32 for i in range(65)])
    for kind in ("intra", "inter"):
        assert found[kind] == counts[kind]
        assert found[f"{kind}_mean"] == pytest.approx(sum(distances[kind]) / len(distances[kind]), rel=1e-5)


def test_equal_and_opposite_features_are_inside_the_edges() -> None:
    # Rounding takes the cosine of some of these a little beyond 1 or -1; such pairs must not fall out.
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    records = [Record(str(i), m, "1", "") for m in ("visible", "infrared", "infrared") for i in range(100)]  # type: ignore[arg-type]
    found = distance_histogram(torch.cat([x, 0.3 * x, -7 * x]), records)
    assert (found["intra"][0], found["intra"][-1], sum(found["intra"])) == (100, 100, 200)
    assert sum(found["inter"]) == 100 * 200 - 200
    assert found["intra_mean"] == pytest.approx(1)


def test_no_pair_of_a_kind_counts_nothing() -> None:
    found = distance_histogram(torch.eye(2), [Record("a", "visible", "1", ""), Record("b", "infrared", "1", "")])
    assert sum(found["intra"]) == 0 and sum(found["inter"]) == 1
    assert found["intra_mean"] == 0 and found["inter_mean"] == pytest.approx(1)


# Ranked lists


@pytest.mark.parametrize("direction", NAMES)
@pytest.mark.parametrize("camera_rule", ["none", "same_camera"])
@pytest.mark.parametrize("depth", [4, 1000])
def test_lists_are_the_nearest_of_the_gallery(direction: str, camera_rule: str, depth: int) -> None:
    images = Images()
    # So many shots that every image of the other modality is in the gallery.
    protocol = Protocol(shots=100, camera_rule=camera_rule)
    q_name, g_name = NAMES[direction]
    lists = images.ranked(protocol, direction=direction, queries=6, depth=depth)
    shown = [entry["query"]["row"] for entry in lists]
    queries = images.rows(q_name)
    assert len(set(shown)) == 6 and shown == sorted(shown)
    assert (shown[0], shown[-1]) == (queries[0], queries[-1])
    assert set(shown) <= set(queries)
    for query, entry in zip(shown, lists, strict=True):
        seen = [
            row
            for row in images.rows(g_name)
            if camera_rule == "none"
            or (images.pids[row], images.camids[row]) != (images.pids[query], images.camids[query])
        ]
        expected = sorted(seen, key=lambda row: images.distance(query, row))[:depth]
        assert [hit["row"] for hit in entry["gallery"]] == expected
        for hit in entry["gallery"]:
            assert hit["distance"] == pytest.approx(images.distance(query, hit["row"]), abs=1e-5)
            assert hit["match"] == (images.pids[hit["row"]] == images.pids[query])


def test_the_gallery_is_that_of_trial_zero() -> None:
    images = Images()
    protocol = Protocol(shots=1, seed=5)
    rows = np.array(images.rows("infrared"))
    drawn = draw_gallery(images.pids[rows], images.camids[rows], np.array(images.paths)[rows], shots=1, seed=5, trial=0)
    lists = images.ranked(protocol, direction="visible_to_infrared", depth=1000)
    for entry in lists:
        found = [hit["row"] for hit in entry["gallery"]]
        assert sorted(found) == sorted(rows[drawn].tolist())
        groups = [(images.pids[row], images.camids[row]) for row in found]
        assert len(set(groups)) == len(groups)


def test_fewer_queries_than_asked_for_are_all_shown() -> None:
    images = Images(12, seed=3)
    lists = images.ranked(Protocol(shots=9), direction="visible_to_infrared", queries=50)
    assert [entry["query"]["row"] for entry in lists] == images.rows("visible")


def test_the_shown_queries_do_not_depend_on_the_features() -> None:
    one, other = Images(), Images()
    other.features = other.features.flip(0)
    shown = [
        [entry["query"]["row"] for entry in images.ranked(Protocol(), direction="infrared_to_visible")]
        for images in (one, other)
    ]
    assert shown[0] == shown[1]


# Camera pairs


@pytest.mark.parametrize("camera_rule", ["none", "same_camera"])
def test_a_camera_pair_is_ranked_as_if_there_were_no_other(camera_rule: str) -> None:
    images = Images(count=120, seed=4)
    protocol = Protocol(trials=1, shots=100, camera_rule=camera_rule)  # type: ignore[arg-type]
    found = camera_pairs(images.features, images.records, protocol, direction="visible_to_infrared")
    queries, gallery = images.rows("visible"), images.rows("infrared")
    assert len(found) == (9 if camera_rule == "none" else 6)  # in one camera, the rule leaves no match
    for pair in found:
        q = [row for row in queries if images.camids[row] == pair["query"]]
        g = [row for row in gallery if images.camids[row] == pair["gallery"]]
        expected = evaluate_ranking(
            np.array([[images.distance(a, b) for b in g] for a in q]),
            images.pids[q],
            images.pids[g],
            images.camids[q],
            images.camids[g],
            camera_rule=camera_rule,
            cmc="image",
        )
        assert pair["queries"] == expected.queries
        assert pair["rank1"] == pytest.approx(expected.cmc[0]) and pair["mAP"] == pytest.approx(expected.mAP)
