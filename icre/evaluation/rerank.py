"""k-reciprocal re-ranking: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017.

Neighbours are searched among the N = Q + G images of both sides. Equations of the paper, with the choices of the
authors' code, which produced the published numbers, where it differs from the paper or the paper is unspecific:

    d(i, j)   squared Euclidean distance of unit vectors, divided by its maximum over j
    N(i, k)   i itself and its k nearest others (eq. 1; the code's k + 1), equal distances by index
    R(i, k)   { j in N(i, k) : i in N(j, k) }  (eq. 2)
    R*(i)     R(i, k1) and every R(c, k1/2), c in R(i, k1), of which more than 2/3 is in R(i, k1) (eq. 3; there: 2/3
              or more); k1/2 is rounded half to even
    V(i, j)   exp(-d(i, j)) for j in R*(i), else 0 (eq. 7), divided by its sum; then the mean of V over i itself and
              its k2 - 1 nearest others (eq. 11)
    J(q, g)   1 - sum_j min(V(q, j), V(g, j)) / sum_j max(V(q, j), V(g, j))  (eq. 10)
    result    (1 - weight) J(q, g) + weight d(q, g)  (eq. 12; weight is the paper's lambda)

Shape letters: Q queries, G gallery images, N = Q + G, D feature dimensions, C rows of one chunk, K neighbours,
P pairs in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from icre.errors import ProtocolError
from icre.evaluation.labels import check_at_least, unit_rows
from icre.evaluation.ranking import check_same_dimensions

# Distances or pairs in a chunk, at most about 64 bytes each.
CHUNK_ELEMENTS = 2**21


def k_reciprocal_distance(
    query_features: Tensor, gallery_features: Tensor, *, k1: int = 20, k2: int = 6, weight: float = 0.3
) -> Tensor:
    """Re-ranked distances in [0, 1], float32 (Q, G) on the queries' device, from features (Q, D) and (G, D).

    Equations and conventions are at the top of this file. A side of N <= k1 images has N neighbours. Besides the
    result and a copy of the features, memory grows with N times the size of a neighbourhood, not with N x N.
    Neighbours are searched on the device of the features, their sets are combined on the CPU.

    Raises :class:`ProtocolError` for rows that are zero or not finite, different dimensions, ``k1`` or ``k2`` below 1,
    and a ``weight`` outside [0, 1].
    """
    check_at_least(1, k1=k1, k2=k2)
    if not 0 <= weight <= 1:
        raise ProtocolError(f"weight is {weight}; it is a share between 0 and 1", hint="correct weight")
    query, gallery = unit_rows(query_features, "query features"), unit_rows(gallery_features, "gallery features")
    check_same_dimensions(query, gallery)
    unit_ND = torch.cat([query, gallery.to(query.device)])
    near_NK, farthest_N, result_QG = _neighbours(unit_ND, len(query), k=max(k1 + 1, k2))
    encoding = _encoding(unit_ND, near_NK, farthest_N, k1=k1, k2=k2)
    result_QG *= weight
    for rows, jaccard_CG in _jaccard(encoding[: len(query)], encoding[len(query) :].tocsc()):
        result_QG[rows].add_(torch.from_numpy(jaccard_CG).to(result_QG), alpha=1 - weight)
    return result_QG


def _neighbours(unit_ND: Tensor, queries: int, *, k: int) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """The ``k`` nearest neighbours of every image (itself first), its greatest distance, and d(q, g)."""
    count = len(unit_ND)
    k = min(k, count)
    near = np.empty((count, k), np.int64)
    farthest_N = unit_ND.new_empty(count)
    result_QG = unit_ND.new_empty(queries, count - queries)
    step = max(1, CHUNK_ELEMENTS // count)
    for start in range(0, count, step):
        dist_CN = (unit_ND[start : start + step] @ unit_ND.T).mul_(-2).add_(2).clamp_(min=0)
        own = torch.arange(len(dist_CN), device=dist_CN.device)
        dist_CN[own, own + start] = 0
        farthest = dist_CN.amax(1)
        # All images are copies of one: every distance is 0 and stays 0.
        farthest_N[start : start + step] = farthest.masked_fill_(farthest == 0, 1)
        if start < queries:
            part = result_QG[start : start + step]
            torch.div(dist_CN[: len(part), queries:], farthest[: len(part), None], out=part)
        dist_CN[own, own + start] = -1
        near[start : start + step] = _smallest(dist_CN, k).cpu().numpy()
    return near, farthest_N, result_QG


def _smallest(dist_CN: Tensor, k: int) -> Tensor:
    """Indices (C, K) of the ``k`` smallest of each row, by distance, then by index."""
    last = dist_CN.topk(k, largest=False).values[:, -1:]
    # topk picks arbitrarily among equal distances. All candidates, in the order of their index:
    row_P, column_P = (dist_CN <= last).nonzero(as_tuple=True)
    by_distance = dist_CN[row_P, column_P].argsort(stable=True)
    by_row = by_distance[row_P[by_distance].argsort(stable=True)]
    found = torch.bincount(row_P, minlength=len(dist_CN))
    first = found.cumsum(0) - found
    return column_P[by_row][first[:, None] + torch.arange(k, device=first.device)]


def _encoding(unit_ND: Tensor, near_NK: NDArray[np.int64], farthest_N: Tensor, *, k1: int, k2: int) -> sparse.csr_array:
    """V: one row for each image, the weights of its expanded neighbours; rows sum to 1."""
    near = _reciprocal(near_NK[:, : k1 + 1])
    half = _reciprocal(near_NK[:, : round(k1 / 2) + 1])
    shared = near.multiply(near @ half.T).tocsr()  # for i and its neighbour c: images in both R(i, k1) and R(c, k1/2)
    shared.data = (3 * shared.data > 2 * np.diff(half.indptr)[shared.indices]).astype(np.float32)
    expanded = (near + shared @ half).tocsr()
    expanded.data = np.exp(-_pair_distances(unit_ND, farthest_N, expanded))
    weights = sparse.diags_array(1 / expanded.sum(axis=1)) @ expanded
    return (_members(near_NK[:, :k2]) / min(k2, len(near_NK)) @ weights).tocsr()


def _members(columns_NK: NDArray[np.int64]) -> sparse.csr_array:
    """Ones at the given columns of each row."""
    count, k = columns_NK.shape
    return sparse.csr_array(
        (np.ones(count * k, np.float32), columns_NK.ravel(), np.arange(count + 1) * k), shape=(count, count)
    )


def _reciprocal(near_NK: NDArray[np.int64]) -> sparse.csr_array:
    """Ones where two images are neighbours of each other."""
    forward = _members(near_NK)
    return forward.multiply(forward.T).tocsr()


def _pair_distances(unit_ND: Tensor, farthest_N: Tensor, pairs: sparse.csr_array) -> NDArray[np.float32]:
    """d(i, j) of the entries of ``pairs``, in their order."""
    unit, farthest = unit_ND.cpu().numpy(), farthest_N.cpu().numpy()
    found = np.empty(pairs.nnz, np.float32)
    for i, (start, stop) in enumerate(pairwise(pairs.indptr)):
        j = pairs.indices[start:stop]
        found[start:stop] = np.where(j == i, 0, (2 - 2 * (unit[j] @ unit[i])).clip(min=0)) / farthest[i]
    return found


def _jaccard(query: sparse.csr_array, gallery: sparse.csc_array) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """J in chunks of queries, float32 (C, G). Rows sum to 1, so the sum of maxima is 2 minus the sum of minima."""
    sizes = np.diff(gallery.indptr)[query.indices]  # number of pairs of each entry of the queries
    ends = sizes.cumsum()[query.indptr[1:] - 1]
    for start, stop in _row_chunks(ends, gallery.shape[0]):
        entries = slice(query.indptr[start], query.indptr[stop])
        size = sizes[entries]
        entry_P = np.repeat(np.arange(len(size)), size)
        place_P = np.arange(len(entry_P)) + (gallery.indptr[query.indices[entries]] - size.cumsum() + size)[entry_P]
        least_P = np.minimum(query.data[entries][entry_P], gallery.data[place_P])
        row = np.repeat(np.arange(stop - start), np.diff(query.indptr[start : stop + 1]))
        flat_P = row[entry_P] * gallery.shape[0] + gallery.indices[place_P]
        least = np.bincount(flat_P, least_P, minlength=(stop - start) * gallery.shape[0])
        least = least.reshape(stop - start, -1)
        # Rounding can make the distance of two copies slightly negative.
        yield slice(start, stop), (1 - least / (2 - least)).clip(min=0).astype(np.float32)


def _row_chunks(ends: NDArray[np.int64], width: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows with about CHUNK_ELEMENTS pairs and result elements, at least one row each."""
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + CHUNK_ELEMENTS, side="right"))
        stop = max(start + 1, min(stop, start + CHUNK_ELEMENTS // width))
        yield start, stop
        start = stop
