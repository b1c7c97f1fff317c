"""Run a protocol on features: every trial of every direction, with mean and standard deviation.

Shape letters: N images, D feature dimensions, C queries of one chunk, U distinct gallery images of all trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from icre.data.records import Record
from icre.errors import ProtocolError
from icre.evaluation.gallery_sampling import Permutations, Rows, trials
from icre.evaluation.labels import CameraRule, Labels, Matrix, encode_labels, unit_rows
from icre.evaluation.protocols import Protocol
from icre.evaluation.rerank import k_reciprocal_distance
from icre.evaluation.scores import (
    QueryScores,
    RankingResult,
    match_labels,
    query_chunks,
    score_matching,
    score_queries,
    summarise,
)

MAX_RANK = 20


@dataclass(frozen=True, eq=False)
class DirectionResult:
    """Results of the trials of one direction, in order."""

    trials: list[RankingResult]
    gallery: int
    """Gallery images per trial; the same in every trial, since a draw includes every (identity, camera)."""

    @property
    def queries(self) -> int:
        """Queries counted per trial."""
        return self.trials[0].queries

    @property
    def skipped(self) -> int:
        """Queries without a match, excluded from every mean."""
        return self.trials[0].skipped

    def mean(self) -> dict[str, float]:
        """Mean over trials of ``rank1 rank5 rank10 rank20 mAP mINP``, in [0, 1]."""
        return {name: float(values.mean()) for name, values in self._by_metric().items()}

    def std(self) -> dict[str, float]:
        """Sample standard deviation (ddof = 1) of the same metrics over trials; 0 for one trial."""
        ddof = min(1, len(self.trials) - 1)
        return {name: float(values.std(ddof=ddof)) for name, values in self._by_metric().items()}

    def _by_metric(self) -> dict[str, NDArray[np.float64]]:
        rows = [trial.metrics() for trial in self.trials]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def run_protocol(
    features: Matrix,
    records: Sequence[Record],
    protocol: Protocol,
    *,
    permutations: Permutations | None = None,
    rerank: bool = False,
    chunk: int | None = None,
) -> dict[str, DirectionResult]:
    """Run every direction of ``protocol`` on features (N, D) of ``records`` (N), with cosine distance, on their device.

    The distances of ``chunk`` queries (default: a bounded size) to the galleries of all trials are computed once and
    shared by the trials. rerank: use :func:`icre.evaluation.rerank.k_reciprocal_distance` in each trial instead.

    Raises :class:`ProtocolError` if the numbers of features and records differ, a modality has no images, the sides
    share no identity, or features are zero or not finite, and in the cases of
    :func:`icre.evaluation.gallery_sampling.trials` and :func:`icre.evaluation.evaluate_ranking`.
    """
    unit_ND = checked_features(features, records)
    results = {}
    for name, direction in protocol.directions.items():
        drawn = trials(records, protocol, direction, permutations=permutations)
        check_common_identity(records, *drawn[0])
        labels = side_labels(records, *drawn[0], camera_rule=protocol.camera_rule, device=unit_ND.device)
        scored = _reranked_scores if rerank else _scores
        scores = list(scored(unit_ND, drawn, *labels, protocol=protocol, chunk=chunk))
        results[name] = DirectionResult(
            [summarise(trial, camera_rule=protocol.camera_rule, max_rank=MAX_RANK) for trial in scores],
            gallery=len(drawn[0][1]),
        )
    return results


def checked_features(features: Matrix, records: Sequence[Record]) -> Tensor:
    """L2-normalised rows (N, D); :class:`ProtocolError` unless each of ``records`` has a usable one."""
    unit_ND = unit_rows(features, "features")
    if len(unit_ND) != len(records):
        raise ProtocolError(
            f"features have shape {tuple(unit_ND.shape)} for {len(records)} images; every image has one row",
            hint="an evaluation that loses or repeats images would print wrong numbers: extract the features again",
        )
    return unit_ND


def check_common_identity(records: Sequence[Record], q_rows: Rows, g_rows: Rows) -> None:
    """Raises :class:`ProtocolError` when no query can have a match."""
    if not {records[i].pid for i in q_rows} & {records[i].pid for i in g_rows}:
        raise ProtocolError(
            "no identity has both visible and infrared images; a query needs its match in the other modality",
            hint="check that an identity has the same label in both modalities",
        )


def side_labels(
    records: Sequence[Record], q_rows: Rows, g_rows: Rows, *, camera_rule: CameraRule, device: torch.device
) -> tuple[Labels, Labels]:
    """Labels of the queries and of the gallery for :func:`icre.evaluation.ranking.score_queries`."""
    pids, cams = (
        tuple(np.array([getattr(records[i], name) for i in rows], dtype=str) for rows in (q_rows, g_rows))
        for name in ("pid", "camid")
    )
    if camera_rule == "sysu":
        cams = tuple(_numbers(side) for side in cams)
    return encode_labels((pids[0], pids[1]), (cams[0], cams[1]), camera_rule=camera_rule, device=device)


def _numbers(camids: NDArray[np.str_]) -> NDArray[np.int64]:
    other = [camid for camid in camids if not camid.isdecimal()]
    if other:
        raise ProtocolError(
            f"camera {str(other[0])!r}: camera rule 'sysu' needs the camera numbers 1 to 6",
            hint="choose the protocol of this data set, or `folder`",
        )
    return camids.astype(np.int64)


def _scores(
    unit_ND: Tensor,
    drawn: Sequence[tuple[Rows, Rows]],
    query: Labels,
    gallery: Labels,
    *,
    protocol: Protocol,
    chunk: int | None,
) -> Iterator[list[QueryScores]]:
    """Scores of each trial. All draws have the same identities and cameras in the same order and share their labels."""
    device = unit_ND.device
    for _, same in groupby(drawn, key=lambda trial: trial[0].tobytes()):
        shared = list(same)
        q_index = torch.from_numpy(shared[0][0]).to(device)
        used = np.unique(np.concatenate([g_rows for _, g_rows in shared]))
        columns = [torch.from_numpy(np.searchsorted(used, g_rows)).to(device) for _, g_rows in shared]
        gallery_DU = unit_ND[torch.from_numpy(used).to(device)].T
        scores: list[list[QueryScores]] = [[] for _ in shared]
        for part in query_chunks(len(q_index), len(used), chunk):
            dist_CU = 1 - unit_ND[q_index[part]] @ gallery_DU
            matching = match_labels(query.take(part), gallery, protocol.camera_rule)
            for trial, column in zip(scores, columns, strict=True):
                # Three times as fast as indexing with a tensor.
                trial.append(score_matching(dist_CU.index_select(1, column), matching, cmc=protocol.cmc))
        yield from scores


def _reranked_scores(
    unit_ND: Tensor,
    drawn: Sequence[tuple[Rows, Rows]],
    query: Labels,
    gallery: Labels,
    *,
    protocol: Protocol,
    chunk: int | None,
) -> Iterator[list[QueryScores]]:
    """Like :func:`_scores`, re-ranked. Neighbours depend on the trial's queries and gallery, so nothing is shared."""
    for q_rows, g_rows in drawn:
        dist_QG = k_reciprocal_distance(unit_ND[q_rows], unit_ND[g_rows])
        yield [
            score_queries(dist_QG[part], query.take(part), gallery, camera_rule=protocol.camera_rule, cmc=protocol.cmc)
            for part in query_chunks(len(q_rows), len(g_rows), chunk)
        ]
