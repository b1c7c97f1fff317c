from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from benchmarks.rerank import dense_distance, exact_features
from icre.errors import ProtocolError
from icre.evaluation import rerank
from icre.evaluation.rerank import k_reciprocal_distance


def assert_same(query, gallery, **options):
    found = k_reciprocal_distance(query, gallery, **options)
    assert (found.shape, found.dtype) == ((len(query), len(gallery)), torch.float32)
    np.testing.assert_allclose(found.numpy(), dense_distance(query, gallery, **options), rtol=0, atol=1e-6)
    return found


def clustered(queries, gallery, people, *, seed, dimensions=32):
    """Directions around those of a few people. No two distances are so near that rounding could swap them."""
    random = torch.Generator().manual_seed(seed)
    count = queries + gallery
    person = torch.randint(people, (count,), generator=random)
    features = torch.randn(people, dimensions, generator=random)[person]
    features = features + 0.7 * torch.randn(count, dimensions, generator=random)
    return features[:queries], features[queries:]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 1, 0.0), (1, 9, 1.0), (7, 3, 0.5), (60, 40, 0.3)])
def test_agrees_with_dense_matrices(seed, k1, k2, weight):
    query, gallery = clustered(40, 25, 6, seed=seed)
    assert_same(query, gallery, k1=k1, k2=k2, weight=weight)


@pytest.mark.parametrize("elements", [1, 50, 1000])
def test_chunks_do_not_matter(elements, monkeypatch):
    query, gallery = clustered(30, 21, 4, seed=7)
    whole = k_reciprocal_distance(query, gallery)
    monkeypatch.setattr(rerank, "CHUNK_ELEMENTS", elements)
    torch.testing.assert_close(k_reciprocal_distance(query, gallery), whole, rtol=0, atol=1e-6)


def test_ties_and_copies_are_ordered_by_index():
    # Entries of +-1/2 in four dimensions: sixteen different images at most, and products without any rounding.
    corners = torch.tensor(list(itertools.product((-0.5, 0.5), repeat=4)))
    random = np.random.default_rng(0)
    for _ in range(60):
        queries, gallery = random.integers(1, 30, 2)
        features = corners[random.integers(0, random.integers(1, 17), queries + gallery)]
        k1, k2 = (int(k) for k in random.integers(1, 25, 2))
        assert_same(features[:queries], features[queries:], k1=k1, k2=k2)
    assert_same(*exact_features(60, 30, 64))


@pytest.mark.parametrize(("queries", "gallery"), [(1, 1), (1, 30), (30, 1), (2, 3)])
def test_few_images(queries, gallery):
    assert_same(*clustered(queries, gallery, 2, seed=1))


def test_copies_of_one_image_keep_their_distances_in_bounds():
    found = assert_same(torch.ones(9, 4), torch.ones(30, 4))
    assert found.isfinite().all()
    assert ((found >= 0) & (found <= 1)).all()


def test_by_hand():
    # A query at 0 degrees, images at 10 and 90. With k1 = 1 the query and the first are each other's neighbours,
    # the second is alone: it shares nothing with the query.
    angles = torch.tensor([0.0, 10.0, 90.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    apart = 2 - 2 * math.cos(math.radians(10))
    of_query = math.exp(-apart / 2)  # 90 degrees are its greatest distance, 2
    of_first = math.exp(-apart / (2 - 2 * math.cos(math.radians(80))))
    least = min(1 / (1 + of_query), of_first / (1 + of_first)) + min(of_query / (1 + of_query), 1 / (1 + of_first))
    expected = [0.7 * (1 - least / (2 - least)) + 0.3 * apart / 2, 0.7 + 0.3]
    assert k_reciprocal_distance(features[:1], features[1:], k1=1, k2=1)[0].tolist() == pytest.approx(
        expected, abs=1e-6
    )


def test_lengths_and_kinds_of_features_do_not_matter():
    query, gallery = exact_features(12, 20, 64)
    expected = k_reciprocal_distance(query, gallery)
    torch.testing.assert_close(k_reciprocal_distance(query * 8, gallery / 4), expected)
    torch.testing.assert_close(k_reciprocal_distance(query.half(), gallery.double()), expected)
    torch.testing.assert_close(k_reciprocal_distance(query.T.contiguous().T, gallery), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees():
    query, gallery = exact_features(60, 90, 64)
    found = k_reciprocal_distance(query.cuda(), gallery.cuda())
    torch.testing.assert_close(found.cpu(), k_reciprocal_distance(query, gallery), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"k1": 0}, {"k2": 0}, {"weight": -0.1}, {"weight": 1.1}, {"weight": math.nan}])
def test_refuses_options(options):
    with pytest.raises(ProtocolError):
        k_reciprocal_distance(torch.ones(2, 3), torch.ones(2, 3), **options)


@pytest.mark.parametrize(
    "gallery", [torch.ones(2, 4), torch.zeros(2, 3), torch.full((2, 3), math.nan), torch.ones(0, 3)]
)
def test_refuses_features(gallery):
    with pytest.raises(ProtocolError):
        k_reciprocal_distance(torch.ones(2, 3), gallery)
