"""The paired bootstrap against plain loops, and the rules of the gate on both sides of their limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from icre.config import Retrain
from icre.data.records import Record
from icre.errors import ProtocolError
from icre.evaluation import Protocol, run_protocol
from icre.evaluation.diagnostics import camera_pairs
from icre.evaluation.protocols import FIXED
from pipelines.retraining.bootstrap import Difference, paired_bootstrap, query_values
from pipelines.retraining.gate import Comparison, Cost, Part, Rule, compare, rules

PEOPLE, SHOTS = 12, 3


def people(cameras: tuple[str, str] = ("1", "3")) -> list[Record]:
    return [
        Record(f"{pid:02d}", modality, camera, f"{modality}/{pid}/{shot}.jpg")
        for pid in range(PEOPLE)
        for modality, camera in (("visible", cameras[0]), ("infrared", cameras[1]))
        for shot in range(SHOTS)
    ]


def features(noise: float, seed: int = 0) -> torch.Tensor:
    """Of ``people()``: an identity's centre, and noise that is another for each image."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(PEOPLE, 16, generator=generator).repeat_interleave(2 * SHOTS, dim=0)
    return centres + noise * torch.randn(centres.shape, generator=generator)


def plain(pairs: list[tuple[np.ndarray, np.ndarray]], resamples: int, confidence: float, seed: int) -> Difference:
    """Query by query, resample by resample."""
    generator = np.random.default_rng(seed)
    drawn_by_direction = [[[generator.integers(len(a)) for _ in a] for _ in range(resamples)] for a, _ in pairs]
    differences = []
    for number in range(resamples):
        means = []
        for (first, second), draws in zip(pairs, drawn_by_direction, strict=True):
            means.append(sum(second[q] - first[q] for q in draws[number]) / len(first))
        differences.append(sum(means) / len(means))
    value = sum(sum(b - a for a, b in zip(*pair, strict=True)) / len(pair[0]) for pair in pairs) / len(pairs)
    ordered = sorted(differences)
    place = (1 - confidence) * (resamples - 1)
    below = ordered[int(place)]
    return Difference(value, below + (place - int(place)) * (ordered[int(place) + 1] - below))


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_the_bootstrap_is_that_of_a_plain_loop(confidence: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    pairs = [(generator.random(n), generator.random(n)) for n in (17, 8)]
    expected = plain(pairs, 120, confidence, seed=3)
    for elements in (1, 100, 2**20):  # however many resamples are drawn at a time
        monkeypatch.setattr("pipelines.retraining.bootstrap.CHUNK_ELEMENTS", elements)
        found = paired_bootstrap(pairs, resamples=120, confidence=confidence, seed=3)
        assert (found.value, found.lower) == pytest.approx((expected.value, expected.lower), abs=1e-12)


def test_the_lower_bound_covers_what_it_says() -> None:
    """Of models that are equal, about one in twenty looks better at a confidence of 0.95; of better ones, most do."""
    generator = np.random.default_rng(0)
    rounds, queries = 400, 60
    for shift, least, most in ((0.0, 0.02, 0.09), (0.2, 0.95, 1.0)):
        above = 0
        for number in range(rounds):
            first = generator.random(queries)
            second = first + shift + 0.3 * generator.standard_normal(queries)
            above += paired_bootstrap([(first, second)], resamples=300, confidence=0.95, seed=number).lower > 0
        assert least <= above / rounds <= most


def test_other_queries_cannot_be_paired() -> None:
    with pytest.raises(ProtocolError, match="5 queries of one model against 4"):
        paired_bootstrap([(np.zeros(5), np.zeros(4))], resamples=100, confidence=0.9, seed=0)


@pytest.mark.parametrize(
    ("protocol", "cameras"),
    [
        (Protocol(trials=3), ("1", "3")),
        (Protocol(trials=2, camera_rule="same_camera", cmc="identity"), ("1", "1a")),
        (FIXED["sysu-all-single"], ("1", "3")),
        (FIXED["llcm-drawn-queries"], ("1", "3")),
        (FIXED["regdb"], ("1", "3")),
    ],
    ids=["folder", "same-camera", "sysu", "drawn-queries", "regdb"],
)
def test_means_over_queries_are_the_protocols(protocol: Protocol, cameras: tuple[str, str]) -> None:
    records = people(cameras)
    values = query_values(features(1.5), records, protocol)
    for name, result in run_protocol(features(1.5), records, protocol).items():
        for metric in ("rank1", "mAP", "mINP"):
            assert values[name][metric].mean() == pytest.approx(result.mean()[metric], abs=1e-12)


def test_features_that_are_not_finite_are_refused() -> None:
    broken = features(1.0)
    broken[3, 2] = torch.nan
    with pytest.raises(ProtocolError):
        query_values(broken, people(), Protocol(trials=1))


def test_a_comparison_has_both_models_in_every_part() -> None:
    records, protocol, settings = people(), Protocol(trials=3), Retrain(resamples=100)
    found = compare(features(2.0), features(0.5), records, protocol, settings=settings, seed=1)
    results = [run_protocol(features(noise), records, protocol) for noise in (2.0, 0.5)]
    means = [np.mean([r.mean()["mAP"] for r in result.values()]) for result in results]
    assert (found.champion["mAP"], found.challenger["mAP"]) == pytest.approx(tuple(means))
    assert found.difference.value == pytest.approx(means[1] - means[0]) and found.difference.lower > 0
    for part in found.directions:
        assert part.queries == PEOPLE * SHOTS
        expected = [result[part.name].mean()["mAP"] for result in results]
        assert [part.champion, part.challenger] == pytest.approx(expected)
    (pair,) = camera_pairs(features(0.5), records, protocol, direction="visible_to_infrared")
    assert found.camera_pairs[0].challenger == pair["mAP"] and "camera 1 to 3" in found.camera_pairs[0].name
    back = compare(features(0.5), features(2.0), records, protocol, settings=settings, seed=1)
    assert back.difference.value == pytest.approx(-found.difference.value) and back.difference.lower < 0


SETTINGS = Retrain(margin=0.01, floor=0.02, min_queries=10, min_metric=0.4, max_latency_ms=50, max_size_mib=100)


def comparison(value: float = 0.02, lower: float = 0.001, pairs: tuple[Part, ...] = ()) -> Comparison:
    return Comparison(
        images=40,
        champion={"mAP": 0.5},
        challenger={"mAP": 0.5 + value},
        difference=Difference(value, lower),
        directions=[Part("visible_to_infrared", 20, 0.5, 0.5 + value), Part("infrared_to_visible", 5, 0.5, 0.5)],
        camera_pairs=pairs,
    )


def broken(frozen: Comparison, newest: Comparison | None = None, cost: Cost = Cost(10, 20)) -> set[str]:  # noqa: B008
    return {rule.name for rule in rules(frozen, newest, cost, SETTINGS) if not rule.passed}


def test_each_rule_alone_keeps_a_challenger_out() -> None:
    fine = comparison()
    assert broken(fine) == set() and broken(comparison(0.01)) == set()
    assert broken(comparison(0.0099)) == {"margin"}
    assert broken(comparison(lower=0.0)) == {"outside the noise"}
    assert broken(comparison(lower=-0.001)) == {"outside the noise"}
    few = replace(fine, directions=[fine.directions[0], Part("infrared_to_visible", 5, 0.5, 0.4)])
    assert broken(few) == {"floor"}  # a direction of the frozen list is judged whatever its size
    assert broken(comparison(pairs=(Part("1 to 3", 10, 0.5, 0.47),))) == {"floor, cameras"}
    assert broken(comparison(pairs=(Part("1 to 3", 10, 0.5, 0.4801), Part("1 to 6", 9, 0.5, 0.1)))) == set()
    assert broken(fine, comparison(-0.03, -1.0)) == {"floor, newest images"}
    assert broken(fine, comparison(-0.01, -1.0)) == set()  # no margin there, and no noise
    assert broken(replace(fine, challenger={"mAP": 0.39})) == {"minimum"}
    assert broken(fine, cost=Cost(101, 20)) == {"size, MiB"}
    assert broken(fine, cost=Cost(10, 51)) == {"latency, ms"}
    assert broken(fine, cost=Cost(100, 50)) == set()


def test_what_is_not_asked_for_is_no_rule() -> None:
    names = {rule.name for rule in rules(comparison(), None, Cost(1e6, None), Retrain())}
    assert names == {"margin", "outside the noise", "floor"}
    shown = rules(comparison(pairs=(Part("1 to 3", 9, 0.9, 0.1),)), None, Cost(1, None), SETTINGS)
    (pair,) = [rule for rule in shown if rule.name == "floor, cameras"]
    assert pair == Rule(pair.name, pytest.approx(-0.8), None, True, pair.note) and "9 queries" in pair.note
