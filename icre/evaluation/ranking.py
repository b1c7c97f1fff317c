"""CMC, mAP and mINP from the distances between queries and gallery.

Metrics and the order of equal distances are defined in :mod:`icre.evaluation.scores`.
Shape letters: Q queries, C queries of one chunk, G gallery images, D feature dimensions.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from icre.errors import ProtocolError
from icre.evaluation.labels import (
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
from icre.evaluation.scores import RankingResult, query_chunks, score_queries, summarise


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
    """CMC, mAP and mINP of distances (Q, G), smaller is nearer, on any device.

    ``camera_rule``: ``none``; ``same_camera`` drops gallery images of the query's identity *and* camera;
    ``sysu`` drops every gallery image of camera 2 for queries of camera 3. ``cmc`` counts images or
    identities. ``chunk`` queries are ranked at a time (default: as many as fit into about 32 MB). Beyond the
    length of a gallery shorter than ``max_rank``, the CMC keeps its last value.

    Raises :class:`ProtocolError` for labels that do not match, distances that are not finite, an empty side,
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
    query, gallery = paired_labels((q_pids, g_pids), (q_camids, g_camids), (q_count, g_count), camera_rule=camera_rule)
    scores = []
    for rows in query_chunks(q_count, g_count, chunk):
        dist_CG = _finite(as_floats(values[rows]), rows.start)
        scores.append(score_queries(dist_CG, query.take(rows), gallery, camera_rule=camera_rule, cmc=cmc))
    return summarise(scores, camera_rule=camera_rule, max_rank=max_rank)


def paired_labels(
    pids: tuple[LabelsLike, LabelsLike],
    camids: tuple[LabelsLike | None, LabelsLike | None],
    counts: tuple[int, int],
    *,
    camera_rule: CameraRule,
) -> tuple[Labels, Labels]:
    """Labels of the ``counts`` queries and gallery images; cameras may be None.

    Raises :class:`ProtocolError` for labels that do not match, and for a rule that needs cameras and has none.
    """
    q_count, g_count = counts
    cams = None
    if camids[0] is not None and camids[1] is not None:
        cams = as_labels(camids[0], "q_camids", q_count), as_labels(camids[1], "g_camids", g_count)
    return encode_labels(
        (as_labels(pids[0], "q_pids", q_count), as_labels(pids[1], "g_pids", g_count)),
        cams,
        camera_rule=camera_rule,
        device=torch.device("cpu"),
    )


def _finite(dist_CG: Tensor, first_query: int) -> Tensor:
    if not dist_CG.isfinite().all():
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
    """One LLCM trial: images of the query's identity and camera are dropped; CMC counts identities."""
    return evaluate_ranking(dist, q_pids, g_pids, q_camids, g_camids, camera_rule="same_camera", cmc="identity")


def evaluate_regdb(dist: Matrix, q_pids: LabelsLike, g_pids: LabelsLike) -> RankingResult:
    """One RegDB split in one direction: no camera rule, CMC counts images."""
    return evaluate_ranking(dist, q_pids, g_pids, camera_rule="none", cmc="image")


@overload
def cosine_distance(query_features: Tensor, gallery_features: Matrix) -> Tensor: ...
@overload
def cosine_distance(query_features: NDArray[Any], gallery_features: Matrix) -> NDArray[np.float32]: ...
def cosine_distance(query_features: Matrix, gallery_features: Matrix) -> Matrix:
    """1 - cos of L2-normalised rows: (Q, D) and (G, D) to float32 (Q, G), with the queries' array type and device.

    Raises :class:`ProtocolError` for rows that are zero or not finite, and for different dimensions.
    """
    query = unit_rows(query_features, "query features")
    gallery = unit_rows(gallery_features, "gallery features")
    check_same_dimensions(query, gallery)
    dist = 1 - query @ gallery.to(query.device).T
    return dist if isinstance(query_features, Tensor) else dist.numpy()


def check_same_dimensions(query: Tensor, gallery: Tensor) -> None:
    """Raises :class:`ProtocolError` unless (Q, D) and (G, D) have the same D."""
    if query.shape[1] != gallery.shape[1]:
        raise ProtocolError(
            f"query features have {query.shape[1]} dimensions, gallery features {gallery.shape[1]}; "
            "both come from one network",
            hint="extract both sides with the same weights",
        )
