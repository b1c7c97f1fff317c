"""What a table does not show: how far apart the modalities are, and what the ranked lists look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from icre.evaluation.protocols import DIRECTIONS, FolderProtocol, draw_gallery

BINS = 64
QUERIES_AT_A_TIME = 1024


def distance_histogram(
    features: Tensor, pids: NDArray[Any], modalities: NDArray[Any]
) -> dict[str, list[float] | float]:
    """Histograms of the cosine distances of all visible-infrared pairs (the paper's Figure 4 a-c).

    features: (N, D). ``edges`` (65) span [0, 2], ``intra`` and ``inter`` (64) count the pairs of the same and
    of different identities, ``intra_mean`` and ``inter_mean`` are the means of those distances.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    visible, infrared = (np.flatnonzero(modalities == name) for name in ("visible", "infrared"))
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


def ranked_lists(
    features: Tensor,
    pids: NDArray[Any],
    camids: NDArray[Any],
    modalities: NDArray[Any],
    paths: Sequence[str] | NDArray[np.str_],
    protocol: FolderProtocol,
    *,
    direction: str,
    queries: int = 6,
    depth: int = 10,
) -> list[dict[str, Any]]:
    """The first ``depth`` gallery images of trial 0 for ``queries`` queries, spread evenly over the rows.

    The queries are not chosen by their result. Each entry: ``query`` (row) and ``gallery``, a list of
    (row, distance, match). The protocol's camera rule is applied.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    q_name, g_name = DIRECTIONS[direction]
    q_rows, candidates = np.flatnonzero(modalities == q_name), np.flatnonzero(modalities == g_name)
    names = np.asarray(paths)[candidates]
    drawn = draw_gallery(pids[candidates], camids[candidates], names, shots=protocol.shots, seed=protocol.seed, trial=0)
    gallery = candidates[drawn]
    shown = q_rows[np.unique(np.linspace(0, len(q_rows) - 1, queries).astype(int))]
    lists = []
    for query in shown.tolist():
        distance = (1 - unit[gallery] @ unit[query]).numpy()
        if protocol.camera_rule == "same_camera":
            hidden = (pids[gallery] == pids[query]) & (camids[gallery] == camids[query])
            distance = np.where(hidden, np.inf, distance)
        order = np.argsort(distance, kind="stable")[:depth]
        entries = [
            {
                "row": int(gallery[i]),
                "distance": float(distance[i]),
                "match": bool(pids[gallery[i]] == pids[query]),
            }
            for i in order
            if np.isfinite(distance[i])
        ]
        lists.append({"query": {"row": query}, "gallery": entries})
    return lists
