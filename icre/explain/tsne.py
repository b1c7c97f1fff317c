"""Features of a few people as points of a plane, by t-SNE (the paper's Figure 4 d-f)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

FEWEST = 4
"""Fewer points have no neighbourhood to keep."""


def scatter(features_ND: Tensor, *, perplexity: float = 30.0, seed: int = 0) -> NDArray[np.float64]:
    """``n x 2`` places of n features, near ones near each other: t-SNE from the first two principal components.

    Rows are brought to length 1 first, so that neighbours are those of the cosine distance, by which retrieval ranks.
    ``perplexity``, about the number of neighbours that a point keeps, is at most (n - 1) / 3. What a picture tells is
    who is near whom; the distances between clusters, their sizes and the axes mean nothing. Features that are all
    alike lie at one place. Raises ValueError for fewer than 4 features, and for ones that are not finite.
    """
    count = len(features_ND)
    if count < FEWEST:
        raise ValueError(f"{count} features: a scatter needs at least {FEWEST}")
    unit = torch.nn.functional.normalize(features_ND.double(), dim=1).cpu().numpy()
    if not np.isfinite(unit).all():
        raise ValueError("features that are not finite have no place in the plane")
    # Rounding alone would be blown up to a cloud.
    if np.ptp(unit, axis=0).max() < 1e-6:
        return np.zeros((count, 2))
    # Exact, not by trees: a few hundred points take seconds, and rounding then changes fewer neighbours.
    embedding = TSNE(
        2, perplexity=min(perplexity, (count - 1) / 3), init="pca", method="exact", random_state=seed
    ).fit_transform(unit)
    return np.asarray(embedding, dtype=np.float64)
