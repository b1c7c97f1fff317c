from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from icre.explain.tsne import scatter


def people(count: int, each: int, *, spread: float) -> Tensor:
    """(count * each, 16): people far apart, each with some images near one another."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.one_hot(torch.arange(count), 16).float()
    return centres.repeat_interleave(each, 0) + spread * torch.randn(count * each, 16, generator=generator)


def test_neighbours_stay_neighbours() -> None:
    features, owner = people(4, 8, spread=0.1), np.repeat(np.arange(4), 8)
    places = scatter(features, perplexity=5)
    assert places.shape == (32, 2)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :7]
    assert (owner[nearest] == owner[:, None]).all()


def test_the_length_of_a_feature_does_not_matter() -> None:
    features = people(3, 5, spread=0.2).double()
    lengths = 2.0 ** torch.arange(15, dtype=torch.float64)[:, None]
    np.testing.assert_array_equal(scatter(features * lengths), scatter(features))


def test_the_same_features_have_the_same_places() -> None:
    features = people(3, 6, spread=0.2)
    np.testing.assert_array_equal(scatter(features), scatter(features))


@pytest.mark.parametrize("count", [4, 5, 7])
def test_a_handful_of_points_is_enough(count: int) -> None:
    places = scatter(people(count, 1, spread=0.1))
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()


def test_features_that_are_all_alike_lie_at_one_place() -> None:
    np.testing.assert_array_equal(scatter(torch.full((9, 4), 0.3)), np.zeros((9, 2)))


@pytest.mark.parametrize("features", [torch.ones(3, 4), torch.tensor([[1.0, float("nan")]] * 5)])
def test_what_cannot_be_placed_is_refused(features: Tensor) -> None:
    with pytest.raises(ValueError, match="features"):
        scatter(features)
