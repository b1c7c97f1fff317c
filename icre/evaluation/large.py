"""Metrics of galleries whose distances or features do not fit into memory.

The gallery is read twice, block by block. The first pass computes the distances of all hits, the second counts the
keys (see :mod:`icre.evaluation.scores`) below the key of each hit. Both passes multiply the same matrices of the same
shapes, so distances are bitwise equal in both.

Shape letters: Q queries, C queries of one tile, B gallery images of one block, G gallery images, H hits, P largest
number of hits of one query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from icre.evaluation.labels import (
    CameraRule,
    CmcUnit,
    Labels,
    LabelsLike,
    Matrix,
    check_at_least,
    check_conventions,
    excluded_pairs,
    unit_rows,
)
from icre.evaluation.ranking import check_same_dimensions, paired_labels
from icre.evaluation.scores import (
    QueryScores,
    RankingResult,
    first_places,
    float_order,
    scores_of,
    summarise,
)

# Distances in a tile, about 40 bytes each.
TILE_ELEMENTS = 2**20
# Pairs of a query and a gallery image of the same identity, about 100 bytes each.
PAIRS_AT_A_TIME = 2**20

Integers = NDArray[np.int64]


def evaluate_features(
    query_features: Matrix,
    gallery_features: Matrix,
    q_pids: LabelsLike,
    g_pids: LabelsLike,
    q_camids: LabelsLike | None = None,
    g_camids: LabelsLike | None = None,
    *,
    camera_rule: CameraRule,
    cmc: CmcUnit,
    max_rank: int = 20,
    block: int = 8192,
) -> RankingResult:
    """CMC, mAP and mINP by cosine distance of features (Q, D) and (G, D), for galleries of any size.

    Equals :func:`icre.evaluation.evaluate_ranking` on the distances of both sides, with the same conventions.
    ``gallery_features`` may be a ``numpy.memmap``; it is read twice, in blocks of ``block`` rows copied to the
    queries' device. Memory: a float32 copy of the queries, one block, the labels, and about 200 MB for the rest.
    Queries with many millions of matches are processed in groups, each with its own two passes.

    Equal gallery images rank by index as long as the matrix product gives equal columns equal results.

    Raises :class:`ProtocolError` for features that are zero or not finite, for different dimensions, and in the cases
    of :func:`icre.evaluation.evaluate_ranking`.
    """
    check_conventions(camera_rule, cmc)
    check_at_least(1, max_rank=max_rank, block=block)
    unit_QD = unit_rows(query_features, "query features")
    check_same_dimensions(unit_QD, unit_rows(gallery_features[:1], "gallery features"))
    counts = len(unit_QD), len(gallery_features)
    query, gallery = paired_labels((q_pids, g_pids), (q_camids, g_camids), counts, camera_rule=camera_rule)
    scores = []
    for rows, row_H, column_H in _groups(query, gallery):
        tiles = _Tiles(unit_QD[rows], gallery_features, min(block, counts[1]))
        labels = query.take(rows), gallery
        key_H = _hit_keys(tiles, row_H, column_H)
        scores.append(_score(tiles, labels, row_H, key_H, camera_rule=camera_rule, cmc=cmc, max_rank=max_rank))
    return summarise(scores, camera_rule=camera_rule, max_rank=max_rank)


def _groups(query: Labels, gallery: Labels) -> Iterator[tuple[slice, Integers, Integers]]:
    """Groups of queries with the rows and gallery columns of their hits; the number of hits per group is bounded."""
    pids = query.pids.numpy()
    order_G = gallery.pids.numpy().argsort(kind="stable")
    images_I = np.bincount(gallery.pids.numpy())
    same_Q = np.where(pids < 0, 0, images_I[pids])
    begin_Q = np.where(pids < 0, 0, (images_I.cumsum() - images_I)[pids])
    ends = same_Q.cumsum()
    start = 0
    while start < len(pids):
        full = int(np.searchsorted(ends, ends[start] - same_Q[start] + PAIRS_AT_A_TIME, side="right"))
        rows = slice(start, max(start + 1, full))
        same = same_Q[rows]
        row = np.repeat(np.arange(len(same)), same)
        column = order_G[np.arange(len(row)) + np.repeat(begin_Q[rows] - same.cumsum() + same, same)]
        # Under any rule, an image of the query's identity is skipped where the camera codes are equal.
        hit = query.cams.numpy()[rows][row] != gallery.cams.numpy()[column]
        yield rows, row[hit], column[hit]
        start = rows.stop


@dataclass(frozen=True, eq=False)
class _Tiles:
    """Distances of some queries to the gallery, one tile at a time."""

    unit_QD: Tensor
    gallery_features: Matrix
    block: int

    def queries(self) -> list[slice]:
        """Slices of the queries of each tile."""
        step = max(1, TILE_ELEMENTS // self.block)
        return [slice(start, start + step) for start in range(0, len(self.unit_QD), step)]

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slice and unit vectors (B, D) of each block of the gallery."""
        for start in range(0, len(self.gallery_features), self.block):
            part = slice(start, min(start + self.block, len(self.gallery_features)))
            unit = unit_rows(self.gallery_features[part], f"gallery features from row {start} on")
            # Products of another shape may round differently: the last block is padded to the shape of the others.
            unit_BD = self.unit_QD.new_zeros(self.block, unit.shape[1])
            unit_BD[: len(unit)] = unit
            yield part, unit_BD

    def distances(self, rows: slice, unit_BD: Tensor) -> NDArray[np.float32]:
        """Distances (C, B), including those to the padding of the last block."""
        dist_CB: NDArray[np.float32] = (self.unit_QD[rows] @ unit_BD.T).cpu().numpy()
        return np.subtract(1, dist_CB, out=dist_CB)


def _hit_keys(tiles: _Tiles, row_H: Integers, column_H: Integers) -> Integers:
    """Keys of the hits, sorted within each query; ``row_H`` ascends. Tiles without a hit are not computed."""
    dist_H = np.empty(len(row_H), np.float32)
    by_column = column_H.argsort(kind="stable")
    for part, unit_BD in tiles.blocks():
        inside = by_column[slice(*np.searchsorted(column_H, (part.start, part.stop), sorter=by_column))]
        for rows in tiles.queries():
            hits = inside[(row_H[inside] >= rows.start) & (row_H[inside] < rows.stop)]
            if len(hits):
                dist_CB = tiles.distances(rows, unit_BD)
                dist_H[hits] = dist_CB[row_H[hits] - rows.start, column_H[hits] - part.start]
    key_H = _keys(dist_H, column_H)
    return key_H[np.lexsort((key_H, row_H))]


def _keys(dist: NDArray[np.float32], index: Integers) -> Integers:
    """Integers that sort in ranking order: by distance, then gallery index. Overwrites ``dist``."""
    keys = float_order(dist).astype(np.int64)
    keys <<= 32
    keys |= index
    return keys


def _score(
    tiles: _Tiles,
    labels: tuple[Labels, Labels],
    row_H: Integers,
    key_H: Integers,
    *,
    camera_rule: CameraRule,
    cmc: CmcUnit,
    max_rank: int,
) -> QueryScores:
    query, gallery = labels
    hits_Q = np.bincount(row_H, minlength=len(query.pids))
    ends = hits_Q.cumsum()
    place_H = np.zeros_like(key_H)
    first_key_Q = np.where(hits_Q > 0, first_places(key_H, hits_Q), np.iinfo(np.int64).min)
    identities = [_Identities(first_key_Q[rows], int(gallery.pids.max()) + 1, max_rank) for rows in tiles.queries()]
    for part, unit_BD in tiles.blocks():
        shown = gallery.take(part)
        for rows, counter in zip(tiles.queries(), identities, strict=True):
            dist_CB = tiles.distances(rows, unit_BD)[:, : len(shown.pids)]
            excluded = excluded_pairs(query.take(rows), shown, camera_rule)
            if excluded is not None:
                np.copyto(dist_CB, np.inf, where=excluded.numpy())
            key_CB = _keys(dist_CB, np.arange(part.start, part.stop))
            if cmc == "identity":
                counter.count(key_CB, shown.pids.numpy())
            key_CB.sort(axis=1)
            for row, key_B in zip(range(rows.start, rows.stop), key_CB, strict=False):
                hits = slice(ends[row] - hits_Q[row], ends[row])
                place_H[hits] += key_B.searchsorted(key_H[hits])
    first_Q = first_places(place_H, hits_Q)
    if cmc == "identity":
        first_Q = np.concatenate([counter.found_C for counter in identities])
    return scores_of(place_H, first_Q, hits_Q)


class _Identities:
    """Identities before the first hit of each query, counted block by block up to ``max_rank``."""

    def __init__(self, first_key_C: Integers, identities: int, max_rank: int) -> None:
        self.limit_C, self.identities, self.max_rank = first_key_C, identities, max_rank
        self.found_C = np.zeros_like(first_key_C)
        self.seen = np.empty(0, np.int64)
        """Codes of (query, identity), for the queries whose count is below ``max_rank``."""

    def count(self, key_CB: Integers, pids_B: Integers) -> None:
        """Add the identities of a block."""
        before = np.flatnonzero(key_CB < self.limit_C[:, None])
        if not len(before):
            return
        row, column = np.divmod(before, len(pids_B))
        seen = np.union1d(self.seen, row * self.identities + pids_B[column])
        row = seen // self.identities
        self.found_C = np.maximum(self.found_C, np.bincount(row, minlength=len(self.found_C)))
        # A rank beyond the CMC needs no exact count: drop the query's memory.
        far_C = self.found_C >= self.max_rank
        self.limit_C = np.where(far_C, np.iinfo(np.int64).min, self.limit_C)
        self.seen = seen[~far_C[row]]
