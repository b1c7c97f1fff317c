"""Paired bootstrap over queries, to test whether one model is better than another on the same queries.

Shape letters: N images, Q queries that have a match, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from icre.data.records import Record
from icre.errors import ProtocolError
from icre.evaluation.gallery_sampling import Permutations, trials
from icre.evaluation.labels import Matrix
from icre.evaluation.protocol_runner import check_common_identity, checked_features, side_labels
from icre.evaluation.protocols import Protocol
from icre.evaluation.scores import query_chunks, score_queries

Values = NDArray[np.float64]

CHUNK_ELEMENTS = 2**21
"""Sampled query indices held in memory at a time: 16 MiB."""


@dataclass(frozen=True)
class Difference:
    """Improvement of the second model: ``value`` on all queries, ``lower`` the one-sided confidence bound."""

    value: float
    lower: float


def query_values(
    features: Matrix, records: Sequence[Record], protocol: Protocol, *, permutations: Permutations | None = None
) -> dict[str, dict[str, Values]]:
    """rank1, mAP and mINP of every query with a match, (Q,) by direction and metric, by cosine distance.

    A query's value is its mean over the gallery draws, so the mean over queries equals the mean of
    :func:`icre.evaluation.run_protocol`. If a protocol draws the queries, each (draw, query) counts as one. Values of
    two models have the same query order. Raises as ``run_protocol`` does.
    """
    unit_ND = checked_features(features, records).cpu()
    found: dict[str, dict[str, Values]] = {}
    for name, direction in protocol.directions.items():
        drawn = trials(records, protocol, direction, permutations=permutations)
        by_trial: list[Values] = []
        for q_rows, g_rows in drawn:
            check_common_identity(records, q_rows, g_rows)
            query, gallery = side_labels(
                records, q_rows, g_rows, camera_rule=protocol.camera_rule, device=torch.device("cpu")
            )
            parts = []
            for part in query_chunks(len(q_rows), len(g_rows)):
                dist_CG = 1 - unit_ND[q_rows[part]] @ unit_ND[g_rows].T
                scores = score_queries(
                    dist_CG, query.take(part), gallery, camera_rule=protocol.camera_rule, cmc=protocol.cmc
                )
                first_C = (scores.rank == 1).double()
                parts.append(torch.stack([first_C, scores.average_precision, scores.inverse_negative_penalty]))
            by_trial.append(torch.cat(parts, dim=1).numpy())
        joined = np.concatenate(by_trial, axis=1) if direction.drawn == "query" else np.mean(by_trial, axis=0)
        if not joined.shape[1]:
            raise ProtocolError(
                f"{name}: none of the queries has a match in the gallery (camera rule {protocol.camera_rule!r})",
                hint="check that both modalities share identities, and that the camera rule suits these cameras",
            )
        found[name] = dict(zip(("rank1", "mAP", "mINP"), joined, strict=True))
    return found


def paired_bootstrap(
    pairs: Sequence[tuple[Values, Values]], *, resamples: int, confidence: float, seed: int
) -> Difference:
    """Difference of the second values to the first, with a confidence bound over the choice of queries.

    pairs: per direction, the values of two models for the same Q queries. With d = second - first,

        value = mean over directions of (1/Q sum_q d_q)
        lower = quantile_{1 - confidence} of the same for B times Q queries drawn with replacement,

    drawn independently per direction; both models always use the same draw. PCG64(seed) draws direction after
    direction, resample after resample.
    """
    generator = np.random.default_rng(seed)
    value, resampled_B = 0.0, np.zeros(resamples)
    for first_Q, second_Q in pairs:
        if first_Q.shape != second_Q.shape:
            raise ProtocolError(
                f"{len(first_Q)} queries of one model against {len(second_Q)} of the other: they cannot be paired",
                hint="evaluate both on the same images by the same protocol",
            )
        difference_Q = second_Q - first_Q
        value += float(difference_Q.mean())
        step = max(1, CHUNK_ELEMENTS // len(difference_Q))
        for start in range(0, resamples, step):
            size = (min(step, resamples - start), len(difference_Q))
            drawn = generator.integers(len(difference_Q), size=size)
            resampled_B[start : start + step] += difference_Q[drawn].mean(axis=1)
    return Difference(value / len(pairs), float(np.quantile(resampled_B / len(pairs), 1 - confidence)))
