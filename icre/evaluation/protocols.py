"""The protocol ``folder``: any data set with visible and infrared images of the same identities.

Query: every image of one modality. Gallery of trial t: ``shots`` images of each (identity, camera) of the
other modality, drawn by a seeded rule. Both directions, several trials, mean and standard deviation.

Shape letters: N images, D feature dimensions, C queries of one chunk, U gallery images of any trial.
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
from icre.evaluation.inputs import (
    CameraRule,
    CmcUnit,
    LabelsLike,
    Matrix,
    as_labels,
    check_at_least,
    check_conventions,
    encode_labels,
    unit_rows,
)
from icre.evaluation.ranking import QueryScores, RankingResult, query_chunks, score_queries, summarise

DIRECTIONS = {
    "visible_to_infrared": ("visible", "infrared"),
    "infrared_to_visible": ("infrared", "visible"),
}
MAX_RANK = 20


@dataclass(frozen=True)
class FolderProtocol:
    """Every choice of the protocol; :class:`ProtocolError` for one that makes no sense."""

    trials: int = 10
    """Galleries drawn in each direction."""
    shots: int = 1
    """Gallery images of each (identity, camera); all of them where there are fewer."""
    camera_rule: CameraRule = "none"
    """Which gallery images a query skips, see :func:`icre.evaluation.evaluate_ranking`."""
    cmc: CmcUnit = "image"
    """Whether CMC counts images or identities."""
    seed: int = 0
    """Of the gallery draws, with the trial's number."""

    def __post_init__(self) -> None:
        check_conventions(self.camera_rule, self.cmc)
        check_at_least(1, trials=self.trials, shots=self.shots)
        check_at_least(0, seed=self.seed)

    def describe(self) -> str:
        """One line that names every choice, to print above a table."""
        return (
            f"Protocol folder: trials {self.trials}, shots {self.shots} per identity and camera, "
            f"camera rule {self.camera_rule}, CMC counts {self.cmc}, seed {self.seed}; "
            "percent, mean ± sample standard deviation over trials"
        )


@dataclass(frozen=True, eq=False)
class DirectionResult:
    """The trials of one direction, in order."""

    trials: list[RankingResult]

    @property
    def queries(self) -> int:
        """Queries counted: the same in every trial, since a draw leaves no (identity, camera) out."""
        return self.trials[0].queries

    @property
    def skipped(self) -> int:
        """Queries without a match, left out of every mean."""
        return self.trials[0].skipped

    def mean(self) -> dict[str, float]:
        """Mean over trials of ``rank1 rank5 rank10 rank20 mAP mINP``, in [0, 1]."""
        return {name: float(values.mean()) for name, values in self._by_metric().items()}

    def std(self) -> dict[str, float]:
        """Sample standard deviation (ddof = 1) over trials of the same; 0 for one trial."""
        ddof = min(1, len(self.trials) - 1)
        return {name: float(values.std(ddof=ddof)) for name, values in self._by_metric().items()}

    def _by_metric(self) -> dict[str, NDArray[np.float64]]:
        rows = [trial.metrics() for trial in self.trials]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def draw_gallery(
    pids: LabelsLike,
    camids: LabelsLike,
    paths: Sequence[str] | NDArray[np.str_],
    *,
    shots: int,
    seed: int,
    trial: int,
) -> NDArray[np.int64]:
    """Rows of one trial's gallery: ``shots`` of each (identity, camera), or all where there are fewer.

    The rows are sorted by (identity, camera, path), numbers by value and strings by code point. Row i of
    that order gets the i-th 64-bit output of PCG64, seeded with SeedSequence((seed, trial)); each group
    gives its rows with the smallest outputs. So the draw does not depend on the order of the input, and
    NumPy keeps these raw streams the same from version to version. The answer is in the sorted order.

    Raises :class:`ProtocolError` when two rows have the same path, or ``shots`` < 1, ``seed`` < 0.
    """
    check_at_least(1, shots=shots)
    check_at_least(0, seed=seed, trial=trial)
    names = np.asarray([str(path) for path in paths], dtype=str)
    persons, cameras = as_labels(pids, "pids", len(names)), as_labels(camids, "camids", len(names))
    unique, counts = np.unique(names, return_counts=True)
    if len(unique) < len(names):
        raise ProtocolError(
            f"path {unique[counts.argmax()]!r} names {counts.max()} images; the draw needs one path an image",
            hint="pass paths relative to the root of the data set, and every image once",
        )
    identities, person = np.unique(persons, return_inverse=True)
    known, camera = np.unique(cameras, return_inverse=True)
    group = person * len(known) + camera
    order = np.lexsort((names, group))
    keys = np.random.PCG64(np.random.SeedSequence((seed, trial))).random_raw(len(names))
    drawn = np.lexsort((keys, group[order]))
    sizes = np.bincount(group, minlength=len(identities) * len(known))
    place_in_group = np.arange(len(names)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return order[np.sort(drawn[place_in_group < shots])]


def run_protocol(
    features: Matrix,
    pids: LabelsLike,
    camids: LabelsLike,
    modalities: Sequence[str] | NDArray[np.str_],
    paths: Sequence[str] | NDArray[np.str_],
    protocol: FolderProtocol,
    *,
    chunk: int | None = None,
) -> dict[str, DirectionResult]:
    """Both directions of ``protocol`` on features (N, D), with cosine distance, on the features' device.

    ``modalities`` are ``visible`` or ``infrared``. The distances of ``chunk`` queries (default: a
    bounded size) to the galleries of all trials are computed once and shared by the trials.

    Raises :class:`ProtocolError` for a modality without images, for modalities without a common identity,
    for features that are not finite or zero, and whatever :func:`evaluate_ranking` raises.
    """
    unit_ND = unit_rows(features, "features")
    count = len(unit_ND)
    persons, cameras = as_labels(pids, "pids", count), as_labels(camids, "camids", count)
    names = as_labels([str(path) for path in paths], "paths", count)
    rows = _rows_by_modality(as_labels(modalities, "modalities", count), persons)
    results = {}
    for direction, (query, gallery) in DIRECTIONS.items():
        g_rows = rows[gallery]
        draws = [
            g_rows[
                draw_gallery(
                    persons[g_rows],
                    cameras[g_rows],
                    names[g_rows],
                    shots=protocol.shots,
                    seed=protocol.seed,
                    trial=trial,
                )
            ]
            for trial in range(protocol.trials)
        ]
        results[direction] = _run_direction(unit_ND, persons, cameras, rows[query], draws, protocol, chunk)
    return results


def _rows_by_modality(modalities: NDArray[Any], persons: NDArray[Any]) -> dict[str, NDArray[np.int64]]:
    rows = {name: np.flatnonzero(modalities == name) for name in ("visible", "infrared")}
    if sum(map(len, rows.values())) < len(modalities):
        known = list(rows)
        other = next(str(name) for name in modalities if name not in known)
        raise ProtocolError(
            f"modality {other!r} is unknown; a modality is visible or infrared", hint="correct the labels"
        )
    for name, members in rows.items():
        if not len(members):
            raise ProtocolError(
                f"none of {len(modalities)} images is {name}; the protocol needs both modalities",
                hint=f"add {name} images of the same identities, or choose another split",
            )
    if not len(np.intersect1d(persons[rows["visible"]], persons[rows["infrared"]])):
        raise ProtocolError(
            "no identity has both visible and infrared images; a query needs its match in the other modality",
            hint="check that an identity has the same label in both modalities",
        )
    return rows


def _run_direction(
    unit_ND: Tensor,
    persons: NDArray[Any],
    cameras: NDArray[Any],
    q_rows: NDArray[np.int64],
    draws: list[NDArray[np.int64]],
    protocol: FolderProtocol,
    chunk: int | None,
) -> DirectionResult:
    device, rule = unit_ND.device, protocol.camera_rule
    used = np.unique(np.concatenate(draws))
    columns = [torch.from_numpy(np.searchsorted(used, draw)).to(device) for draw in draws]
    # Every draw has the same identities and cameras in the same order, so the first one labels them all.
    queries, gallery = encode_labels(
        (persons[q_rows], persons[draws[0]]),
        (cameras[q_rows], cameras[draws[0]]),
        camera_rule=rule,
        device=device,
    )
    q_index, gallery_DU = torch.from_numpy(q_rows).to(device), unit_ND[torch.from_numpy(used).to(device)].T
    scores: list[list[QueryScores]] = [[] for _ in draws]
    for part in query_chunks(len(q_rows), len(used), chunk):
        dist_CU = 1 - unit_ND[q_index[part]] @ gallery_DU
        labels = queries.take(part)
        for trial, column in zip(scores, columns, strict=True):
            trial.append(score_queries(dist_CU[:, column], labels, gallery, camera_rule=rule, cmc=protocol.cmc))
    return DirectionResult([summarise(trial, camera_rule=rule, max_rank=MAX_RANK) for trial in scores])
