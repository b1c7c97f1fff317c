"""Claim: k-reciprocal re-ranking with sparse neighbour sets is at least 10 times as fast as with dense matrices.

    python -m benchmarks.rerank [--queries 3803] [--gallery 301] [--dimensions 2048] [--threads 2] [--rounds 3]

The dense side is NumPy, image by image as in the equations, and must give the same distances to 1e-6. Both sides
alternate in one run on the same random features. Prints one Markdown row, then JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.step import median_seconds
from icre.evaluation.rerank import k_reciprocal_distance

SEED = 0
PEOPLE = 96
STEPS = 32  # a power of two: products are exact, so both sides have the same order and ties


def main() -> None:
    """Time both sides and print the ratio."""
    options = _options()
    torch.set_num_threads(options.threads)
    query, gallery = exact_features(options.queries, options.gallery, options.dimensions)
    off = float(np.abs(k_reciprocal_distance(query, gallery).numpy() - dense_distance(query, gallery)).max())
    assert off < 1e-6, f"the distances differ by {off}"
    sides: list[Callable[[], object]] = [
        lambda: k_reciprocal_distance(query, gallery),
        lambda: dense_distance(query, gallery),
    ]
    sparse_s, dense_s = median_seconds(sides, torch.device("cpu"), rounds=options.rounds, warm_up=0)
    result = {
        "benchmark": "rerank",
        **vars(options),
        "sparse_s": round(sparse_s, 3),
        "dense_s": round(dense_s, 3),
        "ratio": round(dense_s / sparse_s, 1),
        "largest_difference": off,
    }
    size = f"{options.queries} x {options.gallery}, {options.dimensions} dimensions, {options.threads} threads"
    times = f"sparse: {result['sparse_s']} s | dense: {result['dense_s']} s | x{result['ratio']}"
    print(f"| re-ranking {size} | {times} |")
    print(json.dumps(result))


def exact_features(queries: int, gallery: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Features of PEOPLE identities with equal norms, whose entries are 0 or +-1 / STEPS."""
    generator = torch.Generator().manual_seed(SEED)
    count, filled = queries + gallery, min(STEPS**2, dimensions)
    person = torch.randint(PEOPLE, (count,), generator=generator)
    signs = torch.randint(2, (PEOPLE, dimensions), generator=generator).float()[person] * 2 - 1
    signs *= torch.where(torch.rand(count, dimensions, generator=generator) < 0.35, -1, 1)
    places = torch.rand(count, dimensions, generator=generator).argsort(dim=1)
    features = torch.where(places < filled, signs / STEPS, 0)
    return features[:queries], features[queries:]


def dense_distance(
    query: Tensor, gallery: Tensor, *, k1: int = 20, k2: int = 6, weight: float = 0.3
) -> NDArray[np.float64]:
    """The equations at the top of ``icre/evaluation/rerank.py``, image by image, on N x N matrices."""
    features = torch.cat([query, gallery]).numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    count, queries = len(unit), len(query)
    original = (2 - 2 * unit @ unit.T).clip(min=0)
    np.fill_diagonal(original, 0)
    farthest = original.max(axis=1, keepdims=True)
    original = original / np.where(farthest == 0, 1, farthest)
    first = original.copy()
    np.fill_diagonal(first, -1)  # an image is its own nearest neighbour, ahead of duplicates
    order = first.argsort(axis=1, kind="stable")

    def reciprocal(image: int, k: int) -> NDArray[np.int64]:
        return np.array([other for other in order[image, : k + 1] if image in order[other, : k + 1]])

    values = np.zeros((count, count))
    for image in range(count):
        near = reciprocal(image, k1)
        expanded = set(near.tolist())
        for other in near:
            further = reciprocal(other, round(k1 / 2))
            if len(np.intersect1d(near, further)) > 2 / 3 * len(further):
                expanded |= set(further.tolist())
        members = sorted(expanded)
        kernel = np.exp(-original[image, members].astype(np.float64))
        values[image, members] = kernel / kernel.sum()
    values = np.stack([values[order[image, :k2]].mean(axis=0) for image in range(count)])
    jaccard = np.empty((queries, count - queries))
    for image in range(queries):
        least = np.minimum(values[image], values[queries:]).sum(axis=1)
        most = np.maximum(values[image], values[queries:]).sum(axis=1)
        jaccard[image] = 1 - least / most
    mixed: NDArray[np.float64] = (1 - weight) * jaccard + weight * original[:queries, queries:]
    return mixed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=3803)
    parser.add_argument("--gallery", type=int, default=301)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2, help="threads for PyTorch")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per side; the median is reported")
    return parser.parse_args()


if __name__ == "__main__":
    main()
