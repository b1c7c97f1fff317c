"""t-SNE of the features of a few identities (the paper's Figure 4 d-f)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

FEWEST = 4
"""Minimum number of points; fewer have no neighbourhood to preserve."""


def scatter(features_ND: Tensor, *, perplexity: float = 30.0, seed: int = 0) -> NDArray[np.float64]:
    """``n x 2`` positions of n features by t-SNE, initialised with the first two principal components.

    Rows are scaled to length 1 first, so neighbours are those of the cosine distance, which ranks retrieval.
    ``perplexity``, roughly the number of neighbours per point, is capped at (n - 1) / 3. Only neighbourhoods are
    meaningful: distances between clusters, cluster sizes and axes are not. Equal features share one position. Raises
    ValueError for fewer than 4 features and for features that are not finite.
    """
    count = len(features_ND)
    if count < FEWEST:
        raise ValueError(f"{count} features: a scatter needs at least {FEWEST}")
    unit = torch.nn.functional.normalize(features_ND.double(), dim=1).cpu().numpy()
    if not np.isfinite(unit).all():
        raise ValueError("features that are not finite have no place in the plane")
    # t-SNE would magnify rounding errors into a cloud.
    if np.ptp(unit, axis=0).max() < 1e-6:
        return np.zeros((count, 2))
    # Exact rather than Barnes-Hut: takes seconds for a few hundred points and is less sensitive to rounding.
    embedding = TSNE(
        2, perplexity=min(perplexity, (count - 1) / 3), init="pca", method="exact", random_state=seed
    ).fit_transform(unit)
    return np.asarray(embedding, dtype=np.float64)
