"""Diagnostics beyond result tables: cross-modal distances, metrics per camera pair, ranked lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icre.data.records import Record
from icre.evaluation.gallery_sampling import Permutations, trials
from icre.evaluation.labels import excluded_pairs, unit_rows
from icre.evaluation.protocol_runner import side_labels
from icre.evaluation.protocols import Protocol
from icre.evaluation.scores import score_queries

BINS = 64
QUERIES_AT_A_TIME = 1024


def distance_histogram(features: Tensor, records: Sequence[Record]) -> dict[str, list[float] | float]:
    """Histograms of the cosine distances of all visible-infrared pairs (the paper's Figure 4 a-c).

    features: (N, D). ``edges`` (65) span [0, 2]. ``intra`` and ``inter`` (64) count the pairs of the same and of
    different identities, and ``intra_mean`` and ``inter_mean`` are the means of their distances.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    visible, infrared = (
        np.array([row for row, record in enumerate(records) if record.modality == name], np.int64)
        for name in ("visible", "infrared")
    )
    pids = np.array([record.pid for record in records], dtype=str)
    edges = np.linspace(0.0, 2.0, BINS + 1)
    counts = np.zeros((2, BINS), np.int64)
    totals = np.zeros(2)
    for start in range(0, len(visible), QUERIES_AT_A_TIME):
        rows = visible[start : start + QUERIES_AT_A_TIME]
        distance = (1 - unit[rows] @ unit[infrared].T).clamp(0, 2).numpy()
        same = pids[rows][:, None] == pids[infrared][None]
        for kind, mask in enumerate((same, ~same)):
            counts[kind] += np.histogram(distance[mask], edges)[0]
            totals[kind] += distance[mask].sum(dtype=np.float64)
    means = totals / counts.sum(axis=1).clip(min=1)
    return {
        "edges": edges.tolist(),
        "intra": counts[0].tolist(),
        "inter": counts[1].tolist(),
        "intra_mean": float(means[0]),
        "inter_mean": float(means[1]),
    }


def camera_pairs(
    features: Tensor,
    records: Sequence[Record],
    protocol: Protocol,
    *,
    direction: str,
    permutations: Permutations | None = None,
) -> list[dict[str, Any]]:
    """Metrics of each query camera against each single gallery camera, over all trials.

    One entry per pair in which at least one query has a match: ``query`` and ``gallery`` (cameras), ``queries`` (of
    one trial), and the means over trials ``rank1`` and ``mAP``, in [0, 1]. The protocol's camera rule applies.
    """
    unit = unit_rows(features, "features")
    found: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for q_rows, g_rows in trials(records, protocol, protocol.directions[direction], permutations=permutations):
        for q_camera, queries in _by_camera(records, q_rows):
            for g_camera, gallery in _by_camera(records, g_rows):
                labels = side_labels(
                    records, queries, gallery, camera_rule=protocol.camera_rule, device=torch.device("cpu")
                )
                scores = score_queries(
                    1 - unit[queries] @ unit[gallery].T, *labels, camera_rule=protocol.camera_rule, cmc=protocol.cmc
                )
                if len(scores.rank):
                    first = float((scores.rank == 1).double().mean())
                    entry = (len(scores.rank), first, float(scores.average_precision.mean()))
                    found.setdefault((q_camera, g_camera), []).append(entry)
    pairs = []
    for (q_camera, g_camera), entries in sorted(found.items()):
        _, rank1, average = np.mean(entries, axis=0).tolist()
        pairs.append({"query": q_camera, "gallery": g_camera, "queries": entries[0][0], "rank1": rank1, "mAP": average})
    return pairs


def _by_camera(records: Sequence[Record], rows: np.ndarray) -> list[tuple[str, np.ndarray]]:
    camids = np.array([records[row].camid for row in rows], dtype=str)
    return [(str(camera), rows[camids == camera]) for camera in np.unique(camids)]


def ranked_lists(
    features: Tensor,
    records: Sequence[Record],
    protocol: Protocol,
    *,
    direction: str,
    permutations: Permutations | None = None,
    queries: int = 6,
    depth: int = 10,
) -> list[dict[str, Any]]:
    """The first ``depth`` gallery images of trial 0 for ``queries`` evenly spaced queries.

    Queries are not chosen by their results. Each entry has ``query`` (row) and ``gallery``, a list of
    (row, distance, match). The protocol's camera rule applies.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    q_rows, gallery = trials(records, protocol, protocol.directions[direction], permutations=permutations)[0]
    shown = q_rows[np.unique(np.linspace(0, len(q_rows) - 1, queries).astype(int))]
    labels = side_labels(records, shown, gallery, camera_rule=protocol.camera_rule, device=unit.device)
    distance = 1 - unit[shown] @ unit[gallery].T
    excluded = excluded_pairs(*labels, protocol.camera_rule)
    if excluded is not None:
        distance = distance.masked_fill(excluded, torch.inf)
    lists = []
    for query, row in zip(shown.tolist(), distance, strict=True):
        order = row.argsort(stable=True)[:depth].tolist()
        entries = [
            {
                "row": int(gallery[i]),
                "distance": float(row[i]),
                "match": records[gallery[i]].pid == records[query].pid,
            }
            for i in order
            if row[i].isfinite()
        ]
        lists.append({"query": {"row": query}, "gallery": entries})
    return lists
