"""Metrics of each query, from labels and distances.

For a query with matches at ranks r_1 < ... < r_n (1 = nearest, counted after the camera rule):

    AP  = 1/n sum_j j / r_j        INP = n / r_n        CMC@k = [r <= k]

where r is r_1 (``image``), or the rank of the query's identity among identities ranked by their first image
(``identity``). Equal distances rank by gallery index.

The gallery is ranked by sorting integer keys composed of distance, gallery index and one bit that marks a hit. NumPy
sorts such rows about ten times faster than any argsort of floats.

Shape letters: Q queries, C queries of one chunk, G gallery images, H hits in a chunk, P pairs, I identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from icre.errors import ProtocolError
from icre.evaluation.labels import CameraRule, CmcUnit, Labels, excluded_pairs

# Distances in a chunk, up to about 64 bytes each: 32 MB for any number of images.
CHUNK_ELEMENTS = 2**19


@dataclass(frozen=True, eq=False)
class RankingResult:
    """Means over the queries that have a match, in [0, 1].

    ``cmc[k-1]`` is CMC@k, float64 (max_rank,). ``skipped`` queries have no match after the
    camera rule and are excluded from the means; ``queries`` are counted.
    """

    cmc: NDArray[np.float64]
    mAP: float
    mINP: float
    queries: int
    skipped: int

    def metrics(self) -> dict[str, float]:
        """``rank1 rank5 rank10 rank20`` (those up to max_rank), ``mAP`` and ``mINP``."""
        ranks = {f"rank{k}": float(self.cmc[k - 1]) for k in (1, 5, 10, 20) if k <= len(self.cmc)}
        return {**ranks, "mAP": self.mAP, "mINP": self.mINP}


@dataclass(frozen=True, eq=False)
class QueryScores:
    """One value per query with a match (float64, float64, int64), and the number of queries without one."""

    average_precision: Tensor
    inverse_negative_penalty: Tensor
    rank: Tensor
    skipped: int


@dataclass(frozen=True, eq=False)
class Matching:
    """Distance-independent part of the scores of some queries on a gallery, see :func:`match_labels`.

    It is reused for all distance matrices with these labels, as in the trials of a protocol.
    """

    tag_CG: NDArray[np.int64]
    """Twice the gallery index, plus 1 for a hit: an image of the query's identity that is not skipped."""
    penalty_CG: NDArray[np.float32]
    """Infinite for skipped images, else 0; (1, 1) where the rule skips nothing."""
    pids_G: NDArray[np.int64]
    hits_C: NDArray[np.int64]

    def keys(self, dist_CG: Tensor) -> NDArray[np.int64]:
        """Integers (C, G) that sort in ranking order: by distance, then gallery index. The lowest bit marks a hit.

        dist_CG: finite, float32 or float64, on any device. Skipped images rank last.
        """
        # Adding zero turns -0.0 into 0.0.
        kept_CG = dist_CG.cpu().numpy() + self.penalty_CG
        key_CG = (float_order(kept_CG) if kept_CG.dtype == np.float32 else _stable_places(kept_CG)).astype(np.int64)
        key_CG <<= 32
        key_CG |= self.tag_CG
        return key_CG


def match_labels(query: Labels, gallery: Labels, camera_rule: CameraRule) -> Matching:
    """The :class:`Matching` of labels from :func:`icre.evaluation.labels.encode_labels`."""
    q_pids, g_pids = (side.pids.cpu().numpy() for side in (query, gallery))
    hit_CG = q_pids[:, None] == g_pids
    penalty_CG = np.zeros((1, 1), np.float32)
    excluded = excluded_pairs(query, gallery, camera_rule)
    if excluded is not None:
        excluded_CG = excluded.cpu().numpy()
        hit_CG &= ~excluded_CG
        penalty_CG = np.where(excluded_CG, np.float32(np.inf), np.float32(0))
    tag_CG = 2 * np.arange(len(g_pids)) + hit_CG
    return Matching(tag_CG, penalty_CG, g_pids, np.count_nonzero(hit_CG, axis=1))


def float_order(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Integers in the order of the floats, equal for equal ones. Overwrites ``values``, which must not hold -0.0."""
    bits = values.view(np.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF  # negative floats sort in reverse as integers
    return bits


def _stable_places(values: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Position of each value in its sorted row, equal values by index; for floats too wide for half a key."""
    order = values.argsort(axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(order.shape[1])[None], axis=1)
    return places


def score_queries(
    dist_CG: Tensor, query: Labels, gallery: Labels, *, camera_rule: CameraRule, cmc: CmcUnit
) -> QueryScores:
    """Rank one chunk: finite float distances (C, G), labels from :func:`icre.evaluation.labels.encode_labels`."""
    return score_matching(dist_CG, match_labels(query, gallery, camera_rule), cmc=cmc)


def score_matching(dist_CG: Tensor, matching: Matching, *, cmc: CmcUnit) -> QueryScores:
    """Rank one chunk: finite float distances (C, G), on any device; NumPy ranks them on the CPU."""
    key_CG = matching.keys(dist_CG)
    key_CG.sort(axis=1)
    hit_CG = (key_CG.astype(np.int8) & 1).view(bool)
    place_H = np.flatnonzero(hit_CG) - np.repeat(np.arange(len(key_CG)) * key_CG.shape[1], matching.hits_C)
    first_C = first_places(place_H, matching.hits_C)
    if cmc == "identity":
        first_C = _identities_before(first_C, key_CG, matching.pids_G)
    return scores_of(place_H, first_C, matching.hits_C)


def first_places(place_H: NDArray[np.int64], hits_C: NDArray[np.int64]) -> NDArray[np.int64]:
    """First of each query's ``hits_C`` positions; 0 for a query without a hit."""
    matched_C = hits_C > 0
    first_C = np.zeros_like(hits_C)
    first_C[matched_C] = place_H[(hits_C.cumsum() - hits_C)[matched_C]]
    return first_C


def scores_of(place_H: NDArray[np.int64], first_C: NDArray[np.int64], hits_C: NDArray[np.int64]) -> QueryScores:
    """Metrics from the hit positions r - 1, ordered by query and rank, with ``hits_C`` positions per query.

    first_C: number of images, or identities, before the first hit.
    """
    matched_C = hits_C > 0
    hits = hits_C[matched_C]
    begin = hits.cumsum() - hits
    hit_H = 1 + np.arange(len(place_H)) - np.repeat(begin, hits)
    precision_H = hit_H / (place_H + 1)
    summed = np.add.reduceat(precision_H, begin) if len(hits) else np.empty(0)
    return QueryScores(
        average_precision=torch.from_numpy(summed / hits),
        inverse_negative_penalty=torch.from_numpy(hits / (place_H[begin + hits - 1] + 1)),
        rank=torch.from_numpy(first_C[matched_C] + 1),
        skipped=len(hits_C) - len(hits),
    )


def _identities_before(
    place_C: NDArray[np.int64], sorted_CG: NDArray[np.int64], pids_G: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Number of distinct identities in the first ``place_C`` positions of each row of sorted keys."""
    before_CG = np.arange(sorted_CG.shape[1]) < place_C[:, None]
    pid_P = pids_G[(sorted_CG[before_CG] & 0xFFFFFFFF) >> 1]
    identities = int(pids_G.max()) + 1
    seen_CI = np.zeros((len(place_C), identities), bool)
    seen_CI.ravel()[pid_P + np.repeat(np.arange(len(place_C)) * identities, place_C)] = True
    found_C: NDArray[np.int64] = np.count_nonzero(seen_CI, axis=1)
    return found_C


def query_chunks(queries: int, gallery: int, chunk: int | None = None) -> list[slice]:
    """Slices of ``chunk`` queries; by default, of a size that keeps the memory per chunk about constant."""
    step = chunk or max(1, CHUNK_ELEMENTS // gallery)
    return [slice(start, min(start + step, queries)) for start in range(0, queries, step)]


def summarise(scores: Sequence[QueryScores], *, camera_rule: CameraRule, max_rank: int) -> RankingResult:
    """Means over all chunks. Raises :class:`ProtocolError` when no query has a match."""
    rank = torch.cat([score.rank for score in scores])
    skipped = sum(score.skipped for score in scores)
    if not len(rank):
        raise ProtocolError(
            f"none of {skipped} queries has a match in the gallery (camera rule {camera_rule!r}); "
            "a mean needs at least one",
            hint="check that both sides share identities, and that the camera rule suits these cameras",
        )
    at_rank = torch.bincount(rank.clamp(max=max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
    return RankingResult(
        cmc=(at_rank.cumsum(0).double() / len(rank)).numpy(),
        mAP=float(torch.cat([score.average_precision for score in scores]).mean()),
        mINP=float(torch.cat([score.inverse_negative_penalty for score in scores]).mean()),
        queries=len(rank),
        skipped=skipped,
    )
