"""Claim: exact CMC, mAP and mINP of ten SYSU-MM01 trials cost a fraction of just the argsorts of their distances.

    python -m benchmarks.ranking [--threads 2] [--rounds 5] [--device cpu]

Sizes: SYSU-MM01 all-search (3,803 queries, 301 gallery images, ten trials), RegDB (2,060 x 2,060), LLCM (7,166 queries,
2,000 gallery images, ten trials); 2,048 dimensions. Alternating in one run, on the same random features:

    ranking   the scores of all trials, from distances
    loop      the same with the usual evaluator: NumPy's argsort, then query by query; the first trial's time,
              multiplied by their number; its metrics must agree to 1e-9
    argsorts  torch.argsort(stable=True) of the distances of all trials, on the same device
    whole     features to metrics by run_protocol: draws, labels, products, ranking
    products  one matrix product of the queries with every image that any trial draws

Prints one Markdown row per data set, then JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.step import median_seconds
from icre.data.records import Record
from icre.evaluation.gallery_sampling import trials
from icre.evaluation.labels import Labels
from icre.evaluation.protocol_runner import run_protocol, side_labels
from icre.evaluation.protocols import DIRECTIONS, FIXED, INFRARED_TO_VISIBLE, Protocol
from icre.evaluation.ranking import cosine_distance
from icre.evaluation.scores import QueryScores, RankingResult, match_labels, query_chunks, score_matching, summarise

Codes = NDArray[np.int64]
Sides = tuple[Labels, Labels]

SEED = 0
DIMENSIONS = 2048
NOISE = 4.0
CMC_LENGTH = 20
# Identities, visible and infrared cameras, queries, gallery images per trial.
SIZES = {
    "sysu-all-single": (96, "1245", "36", 3803, 301),
    "regdb": (206, "1", "2", 2060, 2060),
    "llcm": (351, "123456789", "12456789", 7166, 2000),
}
IMAGES_IN_CAMERA = {"sysu-all-single": 20, "regdb": 10, "llcm": 3}


def main() -> None:
    """Time the size of each data set."""
    options = _options()
    torch.set_num_threads(options.threads)
    rows = [_measure(name, options) for name in SIZES]
    for row in rows:
        print(
            f"| {row['protocol']}, {row['trials']} x {row['queries']} x {row['gallery']}, {options.device}, "
            f"{options.threads} threads | ranking: {row['ranking_s']} s | loop / ranking: x{row['loop_ratio']} "
            f"| ranking / argsorts: x{row['argsort_ratio']} | whole / (products + argsorts): x{row['whole_ratio']} |"
        )
    print(json.dumps({"benchmark": "ranking", **vars(options), "sizes": rows}))


def _measure(name: str, options: argparse.Namespace) -> dict[str, str | float]:
    direction = DIRECTIONS[INFRARED_TO_VISIBLE]
    protocol = replace(FIXED[name], directions={INFRARED_TO_VISIBLE: direction})
    device = torch.device(options.device)
    records = records_of(name)
    features = _features(records).to(device)
    drawn = trials(records, protocol, direction)
    dists = [cosine_distance(features[q], features[g]) for q, g in drawn]
    query, pool = features[drawn[0][0]], features[np.unique(np.concatenate([g for _, g in drawn]))]
    labels = side_labels(records, *drawn[0], camera_rule=protocol.camera_rule, device=torch.device("cpu"))
    sides: list[Callable[[], object]] = [
        lambda: _rank(dists, labels, protocol),
        lambda: _plain_loop(dists[0], labels, protocol),
        lambda: [dist.argsort(dim=1, stable=True) for dist in dists],
        lambda: run_protocol(features, records, protocol),
        lambda: query @ pool.T,
    ]
    _check(_rank(dists[:1], labels, protocol)[0], _plain_loop(dists[0], labels, protocol))
    ranking_s, loop_s, argsorts_s, whole_s, products_s = median_seconds(sides, device, rounds=options.rounds)
    loop_s *= len(dists)
    return {
        "protocol": name,
        "trials": len(drawn),
        "queries": len(dists[0]),
        "gallery": dists[0].shape[1],
        "ranking_s": round(ranking_s, 4),
        "loop_s": round(loop_s, 3),
        "argsorts_s": round(argsorts_s, 4),
        "whole_s": round(whole_s, 4),
        "products_s": round(products_s, 4),
        "loop_ratio": round(loop_s / ranking_s, 1),
        "argsort_ratio": round(ranking_s / argsorts_s, 3),
        "whole_ratio": round(whole_s / (products_s + argsorts_s), 3),
    }


def records_of(name: str) -> list[Record]:
    """Images in the layout of a data set, with its numbers of queries and drawn gallery images."""
    people, visible, infrared, queries, gallery = SIZES[name]
    images = IMAGES_IN_CAMERA[name]
    groups = gallery // images if name == "regdb" else gallery
    shown = [(pid, camera, "visible") for camera in visible for pid in range(people)][:groups]
    asked = [(pid, camera, "infrared") for camera in infrared for pid in range(people)]
    records = [
        Record(f"{pid:04d}", modality, camera, f"cam{camera}/{pid:04d}/{modality}{i:04d}.jpg")  # type: ignore[arg-type]
        for pid, camera, modality in shown
        for i in range(images)
    ]
    places = [asked[i % len(asked)] for i in range(queries)]
    return records + [
        Record(f"{pid:04d}", "infrared", camera, f"cam{camera}/{pid:04d}/query{i:05d}.jpg")
        for i, (pid, camera, _) in enumerate(places)
    ]


def _features(records: list[Record]) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    people = torch.randn(1 + max(int(record.pid) for record in records), DIMENSIONS, generator=generator)
    noise = torch.randn(len(records), DIMENSIONS, generator=generator)
    return people[[int(record.pid) for record in records]] + NOISE * noise


def _rank(dists: Sequence[Tensor], labels: Sides, protocol: Protocol) -> list[RankingResult]:
    """Rank all trials as :func:`icre.evaluation.run_protocol` does."""
    scores: list[list[QueryScores]] = [[] for _ in dists]
    for rows in query_chunks(*dists[0].shape):
        matching = match_labels(labels[0].take(rows), labels[1], protocol.camera_rule)
        for trial, dist in zip(scores, dists, strict=True):
            trial.append(score_matching(dist[rows], matching, cmc=protocol.cmc))
    return [summarise(trial, camera_rule=protocol.camera_rule, max_rank=CMC_LENGTH) for trial in scores]


def _check(found: RankingResult, expected: tuple[NDArray[np.float64], float, float]) -> None:
    cmc, average, penalty = expected
    np.testing.assert_allclose(found.cmc, cmc, rtol=0, atol=1e-9)
    np.testing.assert_allclose((found.mAP, found.mINP), (average, penalty), rtol=0, atol=1e-9)


def _plain_loop(dist: Tensor, labels: Sides, protocol: Protocol) -> tuple[NDArray[np.float64], float, float]:
    codes = [codes.numpy() for side in labels for codes in (side.pids, side.cams)]
    return _loop(dist.cpu().numpy(), *codes, protocol=protocol)


def _loop(
    dist: NDArray[np.float32],
    q_pids: Codes,
    q_cams: Codes,
    g_pids: Codes,
    g_cams: Codes,
    *,
    protocol: Protocol,
) -> tuple[NDArray[np.float64], float, float]:
    """CMC, mAP and mINP, query by query, as evaluators are usually written."""
    order = dist.argsort(axis=1, kind="stable")
    curves, averages, penalties = [], [], []
    for ranked, pid, cam in zip(order, q_pids, q_cams, strict=True):
        pids, skipped = g_pids[ranked], g_cams[ranked] == cam
        if protocol.camera_rule == "same_camera":
            skipped &= pids == pid
        pids = pids[~skipped]
        match = pids == pid
        if not match.any():
            continue
        found = match
        if protocol.cmc == "identity":
            _, first = np.unique(pids, return_index=True)
            found = np.asarray([pids[place] for place in sorted(first)]) == pid
        curve = found.cumsum().clip(max=1)[:CMC_LENGTH]
        curves.append(np.pad(curve, (0, CMC_LENGTH - len(curve)), constant_values=1))
        precision = [hits / (place + 1) for place, hits in enumerate(match.cumsum())]
        averages.append((np.asarray(precision) * match).sum() / match.sum())
        penalties.append(match.sum() / (np.flatnonzero(match)[-1] + 1))
    return np.mean(curves, axis=0), float(np.mean(averages)), float(np.mean(penalties))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="threads for PyTorch")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per side; the median is reported")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args()


if __name__ == "__main__":
    main()
