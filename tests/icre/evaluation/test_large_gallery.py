from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from icre.errors import ProtocolError
from icre.evaluation import evaluate_ranking, large
from icre.evaluation.large import evaluate_features
from icre.evaluation.ranking import cosine_distance

CONVENTIONS = list(itertools.product(("none", "same_camera", "sysu"), ("image", "identity")))


def random_features(rng, count):
    """Corners of a cube, of several lengths: products without rounding, and many copies."""
    return (rng.choice([-1, 1], (count, 4)) * rng.choice([0.5, 1, 4], (count, 1))).astype(rng.choice(["f2", "f4"]))


def random_labels(rng, queries, gallery, people):
    sides = queries, gallery
    pids = [rng.integers(0, people, side) for side in sides]
    return *pids, rng.choice([3, 6, 2], queries), rng.choice([1, 2, 3], gallery)


def assert_same(found, expected):
    assert (found.queries, found.skipped) == (expected.queries, expected.skipped)
    np.testing.assert_allclose(found.cmc, expected.cmc, rtol=0, atol=1e-12)
    assert (found.mAP, found.mINP) == pytest.approx((expected.mAP, expected.mINP), abs=1e-12)


@pytest.mark.parametrize(("rule", "unit"), CONVENTIONS)
@pytest.mark.parametrize(("pairs", "elements"), [(2**20, 2**20), (5, 40)])
def test_agrees_with_the_distances_at_once(rule, unit, pairs, elements, monkeypatch):
    monkeypatch.setattr(large, "PAIRS_AT_A_TIME", pairs)
    monkeypatch.setattr(large, "TILE_ELEMENTS", elements)
    rng = np.random.default_rng(CONVENTIONS.index((rule, unit)))
    compared = refused = 0
    for _ in range(80):
        queries, gallery = int(rng.integers(1, 12)), int(rng.integers(1, 60))
        sides = random_features(rng, queries), random_features(rng, gallery)
        labels = random_labels(rng, queries, gallery, int(rng.integers(1, 25)))
        options = {"camera_rule": rule, "cmc": unit, "max_rank": int(rng.integers(1, 25))}
        try:
            expected = evaluate_ranking(cosine_distance(*sides), *labels, **options)
        except ProtocolError:
            refused += 1
            with pytest.raises(ProtocolError, match="has a match"):
                evaluate_features(*sides, *labels, block=7, **options)
            continue
        compared += 1
        assert_same(evaluate_features(*sides, *labels, block=int(rng.integers(1, 70)), **options), expected)
    assert compared > 40 and refused


class Watched(np.ndarray):
    """Notes how many rows each read takes."""

    reads: list[int]

    def __array_finalize__(self, other):
        self.reads = getattr(other, "reads", [])

    def __getitem__(self, rows):
        found = super().__getitem__(rows)
        self.reads.append(len(found))
        return np.asarray(found)


def test_reads_no_more_than_a_block_at_a_time():
    rng = np.random.default_rng(0)
    query, gallery = random_features(rng, 20), random_features(rng, 1000).view(Watched)
    gallery.reads = []
    evaluate_features(query, gallery, *random_labels(rng, 20, 1000, 50), camera_rule="sysu", cmc="identity", block=64)
    assert 1 < max(gallery.reads) <= 64
    assert sum(gallery.reads) <= 2 * 1000 + 1


def test_memory_map_and_tensors(tmp_path):
    rng = np.random.default_rng(1)
    query, gallery = rng.standard_normal((15, 8)).astype("f4"), rng.standard_normal((300, 8)).astype("f2")
    gallery.tofile(tmp_path / "gallery")
    mapped = np.memmap(tmp_path / "gallery", np.float16, "r", shape=gallery.shape)
    labels = random_labels(rng, 15, 300, 10)
    options = {"camera_rule": "same_camera", "cmc": "identity"}
    expected = evaluate_ranking(cosine_distance(query, gallery), *labels, **options)
    assert_same(evaluate_features(query, mapped, *labels, block=64, **options), expected)
    tensors = torch.from_numpy(query), torch.from_numpy(gallery)
    assert_same(evaluate_features(*tensors, *labels, block=64, **options), expected)


@pytest.mark.parametrize("dimensions", [3, 64, 509])
def test_copies_in_other_blocks_tie(dimensions):
    # Every image of the gallery is the same: the only right order is that of the index, across all blocks.
    rng = np.random.default_rng(dimensions)
    query = rng.standard_normal((9, dimensions)).astype("f4")
    gallery = np.repeat(rng.standard_normal((1, dimensions)).astype("f4"), 203, axis=0)
    labels = rng.integers(0, 5, 9), rng.integers(0, 5, 203)
    options = {"camera_rule": "none", "cmc": "identity"}
    expected = evaluate_ranking(np.zeros((9, 203), "f4"), *labels, **options)
    assert_same(evaluate_features(query, gallery, *labels, block=32, **options), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_queries_on_a_gpu():
    rng = np.random.default_rng(2)
    query, gallery = random_features(rng, 30), random_features(rng, 500)
    labels = random_labels(rng, 30, 500, 40)
    options = {"camera_rule": "sysu", "cmc": "identity"}
    found = evaluate_features(torch.from_numpy(query).cuda(), gallery, *labels, block=64, **options)
    assert_same(found, evaluate_features(query, gallery, *labels, **options))


@pytest.mark.parametrize(
    ("gallery", "g_pids"),
    [
        pytest.param(np.ones((3, 5)), [1, 1, 2], id="dimensions"),
        pytest.param(np.ones((0, 4)), [], id="no gallery"),
        pytest.param(np.ones(4), [1, 1, 2, 2], id="one dimension"),
        pytest.param(np.ones((3, 4)), [1, 1], id="too few labels"),
        pytest.param(np.ones((3, 4)), [5, 6, 7], id="no match"),
        pytest.param(np.array([[1.0] * 4, [np.nan] * 4]), [1, 2], id="NaN"),
        pytest.param(np.array([[1.0] * 4, [0.0] * 4]), [1, 2], id="no direction"),
    ],
)
def test_refuses(gallery, g_pids):
    with pytest.raises(ProtocolError) as caught:
        evaluate_features(np.ones((2, 4)), gallery, [1, 2], g_pids, camera_rule="none", cmc="image")
    assert caught.value.hint


@pytest.mark.parametrize("options", [{"cmc": "person"}, {"block": 0}, {"max_rank": 0}, {"camera_rule": "market"}])
def test_refuses_options(options):
    with pytest.raises(ProtocolError):
        evaluate_features(
            np.ones((1, 4)), np.ones((1, 4)), [1], [1], **{"camera_rule": "none", "cmc": "image", **options}
        )
