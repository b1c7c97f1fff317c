"""The promotion gate: compares a new model with the one in service on the same images, and applies the rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from icre.config import Retrain
from icre.data.records import Record
from icre.evaluation.diagnostics import camera_pairs
from icre.evaluation.gallery_sampling import Permutations
from icre.evaluation.protocols import Protocol
from pipelines.retraining.bootstrap import Difference, paired_bootstrap, query_values

METRICS = ("mAP", "rank1", "mINP")


@dataclass(frozen=True)
class Part:
    """Results of both models for one direction or camera pair, in [0, 1]."""

    name: str
    queries: int
    champion: float
    challenger: float

    @property
    def difference(self) -> float:
        """Positive where the challenger is better."""
        return self.challenger - self.champion


@dataclass(frozen=True)
class Comparison:
    """Comparison of two models on the same images with the same protocol."""

    images: int
    champion: Mapping[str, float]
    """Means over the directions, by metric."""
    challenger: Mapping[str, float]
    difference: Difference
    """Difference in the deciding metric."""
    directions: Sequence[Part]
    camera_pairs: Sequence[Part]
    """Camera pairs, compared in rank-1 if that is the deciding metric, else in mAP."""


@dataclass(frozen=True)
class Cost:
    """Resource use of a model; None where not measured."""

    size_mib: float
    latency_ms: float | None


@dataclass(frozen=True)
class Rule:
    """One rule, its measured value, and whether it passed. ``limit`` None: shown for information only."""

    name: str
    value: float
    limit: float | None
    passed: bool
    note: str = ""


def compare(
    champion: Tensor,
    challenger: Tensor,
    records: Sequence[Record],
    protocol: Protocol,
    *,
    settings: Retrain,
    seed: int,
    permutations: Permutations | None = None,
) -> Comparison:
    """Compare the features (N, D) of two models for the same ``records`` (N), ranked by cosine distance.

    Raises :class:`~icre.errors.ProtocolError` as :func:`icre.evaluation.run_protocol` does.
    """
    both = (champion, challenger)
    old, new = (query_values(features, records, protocol, permutations=permutations) for features in both)
    metric = settings.metric
    pairs = [(old[name][metric], new[name][metric]) for name in protocol.directions]
    directions = [
        Part(name, len(before), float(before.mean()), float(after.mean()))
        for name, (before, after) in zip(protocol.directions, pairs, strict=True)
    ]
    return Comparison(
        images=len(records),
        champion=_means(old),
        challenger=_means(new),
        difference=paired_bootstrap(pairs, resamples=settings.resamples, confidence=settings.confidence, seed=seed),
        directions=directions,
        camera_pairs=list(_camera_pairs(both, records, protocol, metric, permutations)),
    )


def rules(frozen: Comparison, newest: Comparison | None, cost: Cost, settings: Retrain) -> list[Rule]:
    """All rules of docs/retraining.md with their values; the challenger is promoted if all pass."""
    found = frozen.difference
    judged = [
        Rule("margin", found.value, settings.margin, found.value >= settings.margin),
        Rule("outside the noise", found.lower, 0.0, found.lower > 0, f"lower bound at {settings.confidence:g}"),
        *(_floor("floor", part, settings, always=True) for part in frozen.directions),
        *(_floor("floor, cameras", part, settings) for part in frozen.camera_pairs),
    ]
    if newest is not None:
        judged += [_floor("floor, newest images", part, settings) for part in newest.directions]
    if settings.min_metric is not None:
        reached = frozen.challenger[settings.metric]
        judged.append(Rule("minimum", reached, settings.min_metric, reached >= settings.min_metric))
    if settings.max_latency_ms is not None and cost.latency_ms is not None:
        fast = cost.latency_ms <= settings.max_latency_ms
        judged.append(Rule("latency, ms", cost.latency_ms, settings.max_latency_ms, fast))
    if settings.max_size_mib is not None:
        small = cost.size_mib <= settings.max_size_mib
        judged.append(Rule("size, MiB", cost.size_mib, settings.max_size_mib, small))
    return judged


def _floor(name: str, part: Part, settings: Retrain, *, always: bool = False) -> Rule:
    if not always and part.queries < settings.min_queries:
        note = f"{part.name}: {part.queries} queries, not judged under {settings.min_queries}"
        return Rule(name, part.difference, None, True, note)
    return Rule(name, part.difference, -settings.floor, part.difference >= -settings.floor, part.name)


def _means(values: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    return {metric: float(np.mean([found[metric].mean() for found in values.values()])) for metric in METRICS}


def _camera_pairs(
    both: tuple[Tensor, Tensor],
    records: Sequence[Record],
    protocol: Protocol,
    metric: str,
    permutations: Permutations | None,
) -> Iterator[Part]:
    judged = "rank1" if metric == "rank1" else "mAP"
    for direction in protocol.directions:
        old, new = (
            camera_pairs(features, records, protocol, direction=direction, permutations=permutations)
            for features in both
        )
        for before, after in zip(old, new, strict=True):
            name = f"{direction}, camera {before['query']} to {before['gallery']}"
            yield Part(name, before["queries"], before[judged], after[judged])
