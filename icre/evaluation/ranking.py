"""CMC, mAP and mINP of a ranking, from the distances between queries and gallery.

For a query with matches at ranks r_1 < ... < r_n (1 = nearest, counted after the camera rule):

    AP  = 1/n sum_j j / r_j        INP = n / r_n        CMC@k = [r <= k]

where r is r_1 (``image``), or the place of the right identity when every identity is kept once, at its
first image (``identity``). Equal distances rank by gallery index.

Shape letters: Q queries, C queries of one chunk, G gallery images, H hits in a chunk, I identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from icre.errors import ProtocolError
from icre.evaluation.inputs import (
    CameraRule,
    CmcUnit,
    Labels,
    LabelsLike,
    Matrix,
    as_floats,
    as_labels,
    check_at_least,
    check_conventions,
    encode_labels,
    unit_rows,
)

# Of a chunk's distances; about 64 bytes each at the worst, so 128 MB however many images there are.
CHUNK_ELEMENTS = 2**21


@dataclass(frozen=True, eq=False)
class RankingResult:
    """Means over the queries that have a match, in [0, 1].

    ``cmc[k-1]`` is CMC@k, float64 (max_rank,). ``queries`` were counted; ``skipped`` had no match left after
    the camera rule and are in no mean.
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
    """One value for every query that has a match (float64, float64, int64), and how many have none."""

    average_precision: Tensor
    inverse_negative_penalty: Tensor
    rank: Tensor
    skipped: int


def evaluate_ranking(
    dist: Matrix,
    q_pids: LabelsLike,
    g_pids: LabelsLike,
    q_camids: LabelsLike | None = None,
    g_camids: LabelsLike | None = None,
    *,
    camera_rule: CameraRule,
    cmc: CmcUnit,
    max_rank: int = 20,
    chunk: int | None = None,
) -> RankingResult:
    """CMC, mAP and mINP of distances (Q, G), smaller is nearer, on the device of ``dist``.

    ``camera_rule``: ``none``; ``same_camera`` drops gallery images of the query's identity *and* camera;
    ``sysu`` drops every gallery image of camera 2 for queries of camera 3. ``cmc`` counts images or
    identities. ``chunk`` queries are ranked at a time (default: as many as fit about 128 MB). A gallery
    shorter than ``max_rank`` leaves the CMC at its last value.

    Raises :class:`ProtocolError` for labels that do not fit, distances that are not finite, an empty side,
    or when no query has a match.
    """
    check_conventions(camera_rule, cmc)
    check_at_least(1, max_rank=max_rank, chunk=1 if chunk is None else chunk)
    values = dist if isinstance(dist, Tensor) else np.asarray(dist)
    if values.ndim != 2 or 0 in values.shape:
        raise ProtocolError(
            f"distances have shape {tuple(values.shape)}; expected (queries, gallery), neither of them 0",
            hint="check that the split has images on both sides",
        )
    q_count, g_count = values.shape
    cams = None
    if q_camids is not None and g_camids is not None:
        cams = as_labels(q_camids, "q_camids", q_count), as_labels(g_camids, "g_camids", g_count)
    query, gallery = encode_labels(
        (as_labels(q_pids, "q_pids", q_count), as_labels(g_pids, "g_pids", g_count)),
        cams,
        camera_rule=camera_rule,
        device=values.device if isinstance(values, Tensor) else torch.device("cpu"),
    )
    scores = []
    for rows in query_chunks(q_count, g_count, chunk):
        dist_CG = _finite(as_floats(values[rows]), rows.start)
        scores.append(score_queries(dist_CG, query.take(rows), gallery, camera_rule=camera_rule, cmc=cmc))
    return summarise(scores, camera_rule=camera_rule, max_rank=max_rank)


def query_chunks(queries: int, gallery: int, chunk: int | None) -> list[slice]:
    """Slices of ``chunk`` queries, or of as many as keep the memory of one chunk about constant."""
    step = chunk or max(1, CHUNK_ELEMENTS // gallery)
    return [slice(start, min(start + step, queries)) for start in range(0, queries, step)]


def _finite(dist_CG: Tensor, first_query: int) -> Tensor:
    # The two extremes carry a NaN or an infinity out in one pass.
    if not all(extreme.isfinite() for extreme in dist_CG.aminmax()):
        row, column = (int(index) for index in (~dist_CG.isfinite()).nonzero()[0])
        raise ProtocolError(
            f"the distance of query {first_query + row} to gallery image {column} is "
            f"{float(dist_CG[row, column])}; distances must be finite to be ranked",
            hint="look for NaN in the features, or for float16 that overflowed",
        )
    return dist_CG


def evaluate_sysu(
    dist: Matrix, q_pids: LabelsLike, g_pids: LabelsLike, q_camids: LabelsLike, g_camids: LabelsLike
) -> RankingResult:
    """One SYSU-MM01 trial, all-search or indoor: queries of camera 3 skip camera 2; CMC counts identities."""
    return evaluate_ranking(dist, q_pids, g_pids, q_camids, g_camids, camera_rule="sysu", cmc="identity")


def evaluate_llcm(
    dist: Matrix, q_pids: LabelsLike, g_pids: LabelsLike, q_camids: LabelsLike, g_camids: LabelsLike
) -> RankingResult:
    """One LLCM trial: the query's identity in the query's camera is dropped; CMC counts identities."""
    return evaluate_ranking(dist, q_pids, g_pids, q_camids, g_camids, camera_rule="same_camera", cmc="identity")


def evaluate_regdb(dist: Matrix, q_pids: LabelsLike, g_pids: LabelsLike) -> RankingResult:
    """One RegDB split in one direction: no camera rule, CMC counts images."""
    return evaluate_ranking(dist, q_pids, g_pids, camera_rule="none", cmc="image")


@overload
def cosine_distance(query_features: Tensor, gallery_features: Matrix) -> Tensor: ...
@overload
def cosine_distance(query_features: NDArray[Any], gallery_features: Matrix) -> NDArray[np.float32]: ...
def cosine_distance(query_features: Matrix, gallery_features: Matrix) -> Matrix:
    """1 - cos of L2-normalised rows: (Q, D) and (G, D) to float32 (Q, G), of the queries' kind and device.

    Raises :class:`ProtocolError` for rows that are not finite or zero, and for different dimensions.
    """
    query = unit_rows(query_features, "query features")
    gallery = unit_rows(gallery_features, "gallery features")
    if query.shape[1] != gallery.shape[1]:
        raise ProtocolError(
            f"query features have {query.shape[1]} dimensions, gallery features {gallery.shape[1]}; "
            "both come from one network",
            hint="extract both sides with the same weights",
        )
    dist = 1 - query @ gallery.to(query.device).T
    return dist if isinstance(query_features, Tensor) else dist.numpy()


def score_queries(
    dist_CG: Tensor, query: Labels, gallery: Labels, *, camera_rule: CameraRule, cmc: CmcUnit
) -> QueryScores:
    """Rank one chunk: finite float distances (C, G), labels of :func:`encode_labels`."""
    same_CG = query.pids[:, None] == gallery.pids
    if camera_rule != "none":
        excluded_CG = query.cams[:, None] == gallery.cams
        if camera_rule == "same_camera":
            excluded_CG &= same_CG
        # Behind every finite distance an excluded image moves nobody's rank.
        dist_CG = dist_CG.masked_fill(excluded_CG, torch.inf)
        same_CG &= ~excluded_CG
    order_CG = _stable_order(dist_CG)
    query_H, place_H = same_CG.gather(1, order_CG).nonzero(as_tuple=True)
    hits_C = torch.bincount(query_H, minlength=len(same_CG))
    end_C = hits_C.cumsum(0)
    hit_H = 1 + torch.arange(len(query_H), device=query_H.device) - (end_C - hits_C)[query_H]
    precision_H = hit_H.double() / (place_H + 1)
    precision_C = torch.zeros_like(hits_C, dtype=torch.float64).index_add_(0, query_H, precision_H)

    matched_C = hits_C > 0
    hits, end = hits_C[matched_C], end_C[matched_C]
    first, last = place_H[end - hits], place_H[end - 1]
    if cmc == "identity":
        first_C = torch.zeros_like(hits_C).masked_scatter_(matched_C, first)
        first = _identities_before(first_C, order_CG, gallery.pids)[matched_C]
    return QueryScores(
        average_precision=precision_C[matched_C] / hits,
        inverse_negative_penalty=hits.double() / (last + 1),
        rank=first + 1,
        skipped=len(hits_C) - len(hits),
    )


def _stable_order(dist_CG: Tensor) -> Tensor:
    """Gallery indices (C, G) by distance, then by index."""
    if dist_CG.dtype != torch.float32 or dist_CG.device.type != "cpu":
        return dist_CG.argsort(dim=1, stable=True)
    # On a CPU, NumPy sorts plain integers several times faster than torch argsorts: put the distance into the
    # high half of an integer and the index into the low one. Adding zero turns -0.0 into 0.0, its equal.
    bits_CG = (dist_CG + 0.0).view(torch.int32)
    bits_CG ^= (bits_CG >> 31) & 0x7FFFFFFF  # negative floats order backwards as integers
    key_CG = bits_CG.long()
    key_CG <<= 32
    key_CG |= torch.arange(dist_CG.shape[1])
    key_CG.numpy().sort(axis=1)
    key_CG &= 0xFFFFFFFF
    return key_CG


def _identities_before(place_C: Tensor, order_CG: Tensor, pids_G: Tensor) -> Tensor:
    """How many different identities stand in the first ``place_C`` places of each row."""
    before_CG = torch.arange(len(pids_G), device=pids_G.device) < place_C[:, None]
    row_P, place_P = before_CG.nonzero(as_tuple=True)
    seen_CI = torch.zeros(len(place_C), int(pids_G.max()) + 1, dtype=torch.bool, device=pids_G.device)
    seen_CI[row_P, pids_G[order_CG[row_P, place_P]]] = True
    return seen_CI.count_nonzero(dim=1)


def summarise(scores: Sequence[QueryScores], *, camera_rule: CameraRule, max_rank: int) -> RankingResult:
    """The means over all chunks; :class:`ProtocolError` when no query has a match."""
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
        cmc=(at_rank.cumsum(0).double() / len(rank)).cpu().numpy(),
        mAP=float(torch.cat([score.average_precision for score in scores]).mean()),
        mINP=float(torch.cat([score.inverse_negative_penalty for score in scores]).mean()),
        queries=len(rank),
        skipped=skipped,
    )
