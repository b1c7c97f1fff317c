from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from icre import config
from icre.data.records import Record
from icre.errors import ConfigError, ProtocolError
from icre.evaluation import (
    DirectionResult,
    Protocol,
    RankingResult,
    draw_gallery,
    protocol_of,
    run_protocol,
)
from icre.evaluation.gallery_sampling import trials
from icre.evaluation.protocols import FIXED, for_validation
from tests.icre.evaluation.reference import reference_ranking

METRICS = ["rank1", "rank5", "rank10", "rank20", "mAP", "mINP"]


def images(seed=0, people=12, cameras=("c1", "c2", "c3"), at_most=5, dims=16):
    """Features, pids, camids, modalities, paths at random, every identity in both modalities."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, dims))
    rows = [
        (pid, cam, modality, f"{modality}/{pid}/{cam}_{n}.png")
        for pid in range(people)
        for modality in ("visible", "infrared")
        for cam in (cameras if pid % 2 else cameras[:2])
        for n in range(int(rng.integers(1, at_most + 1)))
    ]
    rng.shuffle(rows)
    pids, cams, modalities, paths = (list(column) for column in zip(*rows, strict=True))
    pids = [int(pid) for pid in pids]
    features = centres[pids] + rng.normal(size=(len(pids), dims))
    return features.astype(np.float32), pids, cams, modalities, paths


def records_of(pids, cams, modalities, paths):
    return [Record(*map(str, row)) for row in zip(pids, modalities, cams, paths, strict=True)]


def gallery_of(pids, cams, paths, **draw):
    return [paths[row] for row in draw_gallery(pids, cams, paths, **{"shots": 1, "seed": 0, "trial": 0, **draw})]


@pytest.mark.parametrize("shots", [1, 2, 10])
def test_a_draw_holds_shots_of_each_identity_and_camera(shots):
    _, pids, cams, _, paths = images()
    drawn = draw_gallery(pids, cams, paths, shots=shots, seed=3, trial=1)
    assert len(set(drawn.tolist())) == len(drawn)
    there = Counter(zip(pids, cams, strict=True))
    taken = Counter((pids[row], cams[row]) for row in drawn)
    assert taken == {group: min(shots, count) for group, count in there.items()}
    assert [(pids[r], cams[r], paths[r]) for r in drawn] == sorted((pids[r], cams[r], paths[r]) for r in drawn)


def test_a_draw_does_not_depend_on_the_order_of_the_rows():
    _, pids, cams, _, paths = images()
    expected = gallery_of(pids, cams, paths)
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(pids))
        assert gallery_of(*([column[row] for row in order] for column in (pids, cams, paths))) == expected


def test_trials_and_seeds_draw_differently_and_again_the_same():
    _, pids, cams, _, paths = images()
    draws = [tuple(gallery_of(pids, cams, paths, seed=s, trial=t)) for s in range(3) for t in range(3)]
    assert len(set(draws)) == 9
    assert draws[4] == tuple(gallery_of(pids, cams, paths, seed=1, trial=1))


def test_every_image_of_a_group_is_drawn_equally_often():
    # 3000 draws of 2 among 5: each image 1200 times, standard deviation sqrt(3000 * 0.4 * 0.6) = 27.
    paths = [f"{n}" for n in range(5)]
    count = Counter(row for t in range(3000) for row in draw_gallery([1] * 5, [1] * 5, paths, shots=2, seed=0, trial=t))
    assert all(abs(times - 1200) < 135 for times in count.values()) and len(count) == 5


def test_the_documented_rule_by_another_road():
    _, pids, cams, _, paths = images(seed=5)
    keys = np.random.PCG64(np.random.SeedSequence((7, 2))).random_raw(len(pids))
    rows = sorted(range(len(pids)), key=lambda row: (pids[row], cams[row], paths[row]))
    groups: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for key, row in zip(keys.tolist(), rows, strict=True):
        groups.setdefault((pids[row], cams[row]), []).append((key, paths[row]))
    expected = [path for group in groups.values() for path in sorted(p for _, p in sorted(group)[:2])]
    assert gallery_of(pids, cams, paths, shots=2, seed=7, trial=2) == expected


def test_a_known_draw_stays_as_it_is():
    # PCG64 seeded with (0, 0) gives these high bytes; the smallest of each group of four is drawn: 4 and 155.
    keys = (np.random.PCG64(np.random.SeedSequence((0, 0))).random_raw(8) >> np.uint64(56)).tolist()
    assert keys == [163, 69, 10, 4, 208, 233, 155, 186]
    paths = [f"{n}" for n in range(8)]
    assert gallery_of([1] * 8, [1] * 4 + [2] * 4, paths) == ["3", "6"]


def test_duplicate_paths_are_refused():
    with pytest.raises(ProtocolError, match="'same'"):
        draw_gallery([1, 2, 3], [1, 1, 1], ["same", "other", "same"], shots=1, seed=0, trial=0)


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize(
    "protocol",
    [
        Protocol(trials=3, seed=4),
        Protocol(trials=2, shots=2, camera_rule="same_camera", cmc="identity"),
    ],
)
def test_run_agrees_with_the_plain_loop_on_each_trial(protocol, chunk, kind):
    features, pids, cams, modalities, paths = images(seed=1)
    given = torch.from_numpy(features) if kind == "tensor" else features
    results = run_protocol(given, records_of(pids, cams, modalities, paths), protocol, chunk=chunk)
    unit = features.astype(float) / np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    assert list(results) == ["visible_to_infrared", "infrared_to_visible"]
    for direction, result in results.items():
        query, gallery = direction.split("_to_")
        q = [row for row, name in enumerate(modalities) if name == query]
        pool = [row for row, name in enumerate(modalities) if name == gallery]
        assert len(result.trials) == protocol.trials
        for trial, got in enumerate(result.trials):
            drawn = draw_gallery(
                *([str(column[row]) for row in pool] for column in (pids, cams, paths)),
                shots=protocol.shots,
                seed=protocol.seed,
                trial=trial,
            )
            g = [pool[row] for row in drawn]
            expected = reference_ranking(
                1 - unit[q] @ unit[g].T,
                *([column[row] for row in side] for column in (pids, cams) for side in (q, g)),
                camera_rule=protocol.camera_rule,
                cmc=protocol.cmc,
            )
            np.testing.assert_allclose(got.cmc, expected.cmc, atol=1e-6)
            assert (got.mAP, got.mINP) == (
                pytest.approx(expected.mAP, abs=1e-6),
                pytest.approx(expected.mINP, abs=1e-6),
            )
            assert (got.queries, got.skipped) == (expected.queries, expected.skipped)
            assert (result.queries, result.skipped) == (got.queries, got.skipped)


def test_run_does_not_depend_on_the_order_of_the_rows():
    columns = images(seed=2)
    order = np.random.default_rng(0).permutation(len(columns[1]))
    shuffled = (columns[0][order], *([column[row] for row in order] for column in columns[1:]))
    protocol = Protocol(trials=4)
    for first, second in zip(
        *(run_protocol(c[0], records_of(*c[1:]), protocol).values() for c in (columns, shuffled)), strict=True
    ):
        assert first.mean() == pytest.approx(second.mean())
        assert first.std() == pytest.approx(second.std())


def test_a_query_whose_identity_lacks_the_other_modality_is_left_out():
    # Identities 1 and 2 sit on their own axes; identity 9 is visible only and would rank wrong.
    features = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    modalities = ["visible"] * 3 + ["infrared"] * 2
    results = run_protocol(features, records_of([1, 2, 9, 1, 2], [1] * 5, modalities, "abcde"), Protocol(trials=2))
    to_infrared, to_visible = results["visible_to_infrared"], results["infrared_to_visible"]
    assert (to_infrared.queries, to_infrared.skipped) == (2, 1)
    assert (to_visible.queries, to_visible.skipped) == (2, 0)
    assert to_infrared.mean() == to_visible.mean() == dict.fromkeys(METRICS, 1.0)


def result_with(value):
    return RankingResult(cmc=np.full(20, value), mAP=value, mINP=value, queries=8, skipped=1)


def test_mean_and_sample_standard_deviation():
    # 0.2, 0.3, 0.7: mean 0.4, squares 0.04 + 0.01 + 0.09 = 0.14, over 2 is 0.07, its root 0.2646.
    direction = DirectionResult([result_with(value) for value in (0.2, 0.3, 0.7)], gallery=5)
    assert direction.mean() == pytest.approx(dict.fromkeys(METRICS, 0.4))
    assert direction.std() == pytest.approx(dict.fromkeys(METRICS, statistics.stdev([0.2, 0.3, 0.7])))
    assert DirectionResult([result_with(0.2)], gallery=5).std() == dict.fromkeys(METRICS, 0.0)


def test_refuses_data_that_the_protocol_cannot_use():
    features, pids, cams, modalities, paths = images()
    protocol = Protocol()
    records = records_of(pids, cams, modalities, paths)
    with pytest.raises(ProtocolError, match="infrared"):
        run_protocol(features, records_of(pids, cams, ["visible"] * len(pids), paths), protocol)
    apart = [pid + 100 * (name == "visible") for pid, name in zip(pids, modalities, strict=True)]
    with pytest.raises(ProtocolError, match="no identity"):
        run_protocol(features, records_of(apart, cams, modalities, paths), protocol)
    with pytest.raises(ProtocolError, match="shape"):
        run_protocol(features[1:], records, protocol)
    features[5, 3] = np.nan
    with pytest.raises(ProtocolError, match="row 5"):
        run_protocol(features, records, protocol)


@pytest.mark.parametrize(
    "choice", [{"trials": 0}, {"shots": 0}, {"seed": -1}, {"camera_rule": "all"}, {"cmc": "images"}]
)
def test_refuses_choices_without_meaning(choice):
    with pytest.raises(ProtocolError, match=next(iter(choice))):
        Protocol(**choice)


def test_every_name_of_a_recipe_is_a_protocol():
    assert {"folder", *FIXED} == set(get_args(config.ProtocolName))
    for name, fixed in FIXED.items():
        assert (fixed.name, protocol_of(config.load_recipe(None, [f"evaluation.protocol={name}"]))) == (name, fixed)
    own = config.load_recipe(
        None, ["evaluation.trials=3", "evaluation.shots=2", "evaluation.cmc=identity", "seed=8", "evaluation.seed=9"]
    )
    assert protocol_of(own) == Protocol(trials=3, shots=2, cmc="identity", seed=9)


def test_a_choice_that_the_protocol_has_made_is_refused():
    with pytest.raises(ConfigError, match=r"evaluation.trials=3.*evaluation.protocol=llcm"):
        config.load_recipe(None, ["evaluation.protocol=llcm", "evaluation.trials=3"])


def test_no_two_protocols_are_described_alike():
    described = [fixed.describe() for fixed in FIXED.values()]
    assert len(set(described)) == len(described)
    assert all(
        fixed.describe() != replace(fixed, cmc="image", camera_rule="none").describe()
        for fixed in FIXED.values()
        if fixed.name != "regdb"
    )


@pytest.mark.parametrize("name", [name for name in FIXED if name.startswith(("sysu", "llcm"))])
def test_protocols_of_benchmarks_agree_with_the_plain_loop(name):
    rng = np.random.default_rng(3)
    cameras = {
        "visible": "1245" if name.startswith("sysu") else "1234",
        "infrared": "36" if name.startswith("sysu") else "1234",
    }
    rows = [
        (pid, camid, modality, f"{modality}/{pid}/{camid}_{n}")
        for pid in range(9)
        for modality, known in cameras.items()
        for camid in known
        for n in range(int(rng.integers(0, 4)))
    ]
    pids, cams, modalities, paths = (list(column) for column in zip(*rows, strict=True))
    features = (rng.normal(size=(9, 8))[pids] + 2 * rng.normal(size=(len(pids), 8))).astype(np.float32)
    fixed = for_validation(FIXED[name])
    records = records_of(pids, cams, modalities, paths)
    unit = features.astype(float) / np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    for direction, result in run_protocol(features, records, fixed, chunk=5).items():
        drawn = trials(records, fixed, fixed.directions[direction])
        assert len(result.trials) == len(drawn) == 10
        for got, (q, g) in zip(result.trials, drawn, strict=True):
            expected = reference_ranking(
                1 - unit[q] @ unit[g].T,
                *([column[row] for row in side] for column in (pids, [int(c) for c in cams]) for side in (q, g)),
                camera_rule=fixed.camera_rule,
                cmc=fixed.cmc,
            )
            np.testing.assert_allclose(got.cmc, expected.cmc, atol=1e-6)
            assert (got.mAP, got.mINP) == (pytest.approx(expected.mAP), pytest.approx(expected.mINP))
            assert (got.queries, got.skipped, result.gallery) == (expected.queries, expected.skipped, len(g))
