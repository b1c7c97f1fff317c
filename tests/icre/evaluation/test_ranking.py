from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from icre.errors import ProtocolError
from icre.evaluation import (
    cosine_distance,
    evaluate_llcm,
    evaluate_ranking,
    evaluate_regdb,
    evaluate_sysu,
)
from icre.evaluation.labels import encode_labels
from icre.evaluation.scores import match_labels, score_matching, summarise
from tests.icre.evaluation.reference import reference_ranking

RULES = ("none", "same_camera", "sysu")
UNITS = ("image", "identity")
CONVENTIONS = list(itertools.product(RULES, UNITS))


def assert_same(result, expected):
    assert (result.queries, result.skipped) == (expected.queries, expected.skipped)
    np.testing.assert_allclose(result.cmc, expected.cmc, rtol=0, atol=1e-12)
    assert result.mAP == pytest.approx(expected.mAP, abs=1e-12)
    assert result.mINP == pytest.approx(expected.mINP, abs=1e-12)


def random_case(rng):
    """Few identities, cameras and distances, so that ties and queries without a match are common."""
    queries, gallery = int(rng.integers(1, 8)), int(rng.integers(1, 30))
    people = int(rng.integers(1, 9))
    levels = int(rng.choice([1, 2, 5, 1000]))
    dist = (rng.integers(-levels, levels + 1, (queries, gallery)) / levels).astype(rng.choice(["f2", "f4", "f8"]))
    dist[(dist == 0) & (rng.random(dist.shape) < 0.5)] = -0.0
    labels = [rng.integers(0, people, queries) * 3 - 5, rng.integers(0, people, gallery) * 3 - 5]
    cams = [rng.choice([3, 6, 2], queries), rng.choice([1, 2, 3, 4], gallery)]
    if rng.random() < 0.3:
        labels = [np.array([f"person {pid}" for pid in side]) for side in labels]
    return dist, *labels, *cams


@pytest.mark.parametrize(("rule", "unit"), CONVENTIONS)
def test_random_cases_agree_with_the_plain_loop(rule, unit):
    rng = np.random.default_rng(RULES.index(rule) * 2 + UNITS.index(unit))
    skipped = refused = 0
    for _ in range(700):
        case = random_case(rng)
        options = {"camera_rule": rule, "cmc": unit, "max_rank": int(rng.integers(1, 40))}
        expected = reference_ranking(*case, **options)
        skipped += expected.skipped
        if expected.queries:
            assert_same(evaluate_ranking(*case, chunk=int(rng.integers(1, 9)), **options), expected)
        else:
            refused += 1
            with pytest.raises(ProtocolError):
                evaluate_ranking(*case, **options)
    assert skipped and refused  # the cases reach the branches they are for


def test_larger_case_in_default_chunks(monkeypatch):
    monkeypatch.setattr("icre.evaluation.scores.CHUNK_ELEMENTS", 1000)
    rng = np.random.default_rng(0)
    dist = rng.random((70, 300), dtype=np.float32)
    case = (
        dist,
        rng.integers(0, 40, 70),
        rng.integers(0, 40, 300),
        rng.choice([3, 6], 70),
        rng.choice([1, 2, 4], 300),
    )
    assert_same(evaluate_sysu(*case), reference_ranking(*case, camera_rule="sysu", cmc="identity"))
    assert_same(evaluate_llcm(*case), reference_ranking(*case, camera_rule="same_camera", cmc="identity"))
    assert_same(evaluate_regdb(*case[:3]), reference_ranking(*case, camera_rule="none", cmc="image"))


@st.composite
def small_cases(draw):
    """Any finite distances, with the values that hypothesis likes: ties, signed zeros, denormals, extremes."""
    queries, gallery = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    dtype, width = draw(st.sampled_from([(np.float16, 16), (np.float32, 32), (np.float64, 64)]))
    finite = st.floats(width=width, allow_nan=False, allow_infinity=False)
    dist = draw(arrays.arrays(dtype, (queries, gallery), elements=finite | st.sampled_from([0.0, -0.0, 0.5])))
    labels = [draw(arrays.arrays(np.int64, n, elements=st.integers(-1, 3))) for n in (queries, gallery)]
    cams = [draw(arrays.arrays(np.int64, n, elements=st.sampled_from([2, 3, 6]))) for n in (queries, gallery)]
    return dist, *labels, *cams


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(case=small_cases(), rule=st.sampled_from(RULES), unit=st.sampled_from(UNITS))
def test_any_finite_distances_agree_with_the_plain_loop(case, rule, unit):
    expected = reference_ranking(*case, camera_rule=rule, cmc=unit)
    if expected.queries:
        assert_same(evaluate_ranking(*case, camera_rule=rule, cmc=unit), expected)
    else:
        with pytest.raises(ProtocolError):
            evaluate_ranking(*case, camera_rule=rule, cmc=unit)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(case=small_cases(), rule=st.sampled_from(RULES), repeats=st.integers(2, 4))
def test_repeated_queries_change_no_mean(case, rule, repeats):
    dist, q_pids, g_pids, q_cams, g_cams = case
    if not reference_ranking(*case, camera_rule=rule, cmc="identity").queries:
        return
    once = evaluate_ranking(*case, camera_rule=rule, cmc="identity")
    often = evaluate_ranking(
        np.tile(dist, (repeats, 1)),
        np.tile(q_pids, repeats),
        g_pids,
        np.tile(q_cams, repeats),
        g_cams,
        camera_rule=rule,
        cmc="identity",
        chunk=3,
    )
    assert (often.queries, often.skipped) == (repeats * once.queries, repeats * once.skipped)
    np.testing.assert_allclose(often.cmc, once.cmc, atol=1e-12)
    assert (often.mAP, often.mINP) == pytest.approx((once.mAP, once.mINP), abs=1e-12)


def test_differences_that_only_float64_holds_are_ranked():
    dist = np.array([[1 + 2e-15, 1.0, 1 + 1e-15]])
    assert evaluate_regdb(dist, [1], [1, 2, 3]).mAP == pytest.approx(1 / 3)
    assert evaluate_regdb(-dist, [1], [1, 2, 3]).mAP == 1


def test_one_matching_ranks_every_trial():
    rng = np.random.default_rng(3)
    pids, cams = [rng.integers(0, 6, n) for n in (20, 30)], [rng.choice([2, 3], n) for n in (20, 30)]
    labels = encode_labels(tuple(pids), tuple(cams), camera_rule="sysu", device=torch.device("cpu"))
    matching = match_labels(*labels, "sysu")
    for _ in range(3):
        dist = rng.integers(0, 9, (20, 30)).astype(np.float32)
        kept = dist.copy()
        scores = score_matching(torch.from_numpy(dist), matching, cmc="identity")
        np.testing.assert_array_equal(dist, kept)
        expected = reference_ranking(dist, *pids, *cams, camera_rule="sysu", cmc="identity")
        assert_same(summarise([scores], camera_rule="sysu", max_rank=20), expected)


def test_by_hand_image_cmc():
    # By distance the gallery reads 2 1 1 3, so identity 1 hits at ranks 2 and 3:
    # AP = (1/2 + 2/3) / 2 = 7/12, INP = 2/3, CMC = 0 1 1 1 and then its last value.
    result = evaluate_ranking([[0.3, 0.1, 0.2, 0.4]], [1], [1, 2, 1, 3], camera_rule="none", cmc="image", max_rank=6)
    assert result.mAP == pytest.approx(7 / 12)
    assert result.mINP == pytest.approx(2 / 3)
    assert result.cmc.tolist() == [0, 1, 1, 1, 1, 1]
    assert result.cmc.dtype == np.float64
    assert result.metrics() == {"rank1": 0, "rank5": 1, "mAP": result.mAP, "mINP": result.mINP}


def test_by_hand_identity_cmc():
    # The ranking reads 2 2 3 1 1: the first image of 1 is the fourth, identity 1 is the third (2, 3, 1).
    # AP and INP count images whatever the CMC counts: (1/4 + 2/5) / 2 = 13/40 and 2/5.
    case = [[0.1, 0.2, 0.3, 0.4, 0.5]], [1], [2, 2, 3, 1, 1]
    image = evaluate_ranking(*case, camera_rule="none", cmc="image", max_rank=4)
    identity = evaluate_ranking(*case, camera_rule="none", cmc="identity", max_rank=4)
    assert image.cmc.tolist() == [0, 0, 0, 1]
    assert identity.cmc.tolist() == [0, 0, 1, 1]
    for result in (image, identity):
        assert (result.mAP, result.mINP) == (pytest.approx(13 / 40), pytest.approx(2 / 5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_by_hand_ties_follow_the_gallery_index(dtype):
    # All equal (0.0 and -0.0 too), so the ranking is the gallery as it stands: 2 1 1, AP = (1/2 + 2/3) / 2.
    result = evaluate_regdb(np.array([[0.0, -0.0, 0.0]], dtype), [1], [2, 1, 1])
    assert result.mAP == pytest.approx(7 / 12)
    # Turned round it is 1 1 2: AP = (1/1 + 2/2) / 2.
    assert evaluate_regdb(np.array([[0.0, -0.0, 0.0]], dtype), [1], [1, 1, 2]).mAP == 1


def test_by_hand_llcm_drops_the_same_identity_in_the_same_camera_only():
    # Image 0 (identity 1, camera 5) is dropped; image 2 (identity 2, camera 5) stays in front of image 1:
    # one hit at rank 2, AP = INP = 1/2. The other query keeps all: 2 first at rank 1.
    result = evaluate_llcm([[0.1, 0.3, 0.2], [0.2, 0.3, 0.1]], [1, 2], [1, 1, 2], [5, 6], [5, 6, 5])
    assert (result.mAP, result.mINP) == ((1 / 2 + 1) / 2, (1 / 2 + 1) / 2)
    assert result.cmc[:2].tolist() == [0.5, 1]


def test_by_hand_sysu_camera_3_skips_all_of_camera_2():
    # Camera 3 loses images 0 and 1: 3 1 is left, a hit at rank 2, AP = INP = 1/2, identity rank 2.
    # Camera 6 keeps all four: 1 1 3 2, hits at ranks 1 and 2, AP = INP = 1, identity rank 1.
    result = evaluate_sysu([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.2]], [1, 1], [2, 1, 3, 1], [3, 6], [2, 2, 1, 4])
    assert (result.mAP, result.mINP) == (0.75, 0.75)
    assert result.cmc[:3].tolist() == [0.5, 1, 1]


def test_rule_that_removes_a_whole_identity_leaves_the_query_out():
    # The first query's only match is in its own camera; the second query hits at rank 1 and is the mean.
    result = evaluate_llcm([[0.1, 0.2], [0.2, 0.1]], ["a", "b"], ["a", "b"], ["x", "x"], ["x", "y"])
    assert (result.queries, result.skipped, result.mAP) == (1, 1, 1)


def test_layout_and_kind_of_the_distances_do_not_matter():
    rng = np.random.default_rng(1)
    dist = rng.integers(0, 50, (9, 24)).astype(np.float32)
    pids, cams = [rng.integers(0, 5, n) for n in (9, 24)], [rng.integers(0, 3, n) for n in (9, 24)]
    expected = reference_ranking(dist, *pids, *cams, camera_rule="same_camera", cmc="identity")
    frozen = dist.copy()
    frozen.setflags(write=False)
    tensor = torch.from_numpy(dist)
    variants = [
        dist.astype(np.float16),
        dist.astype(np.int64),
        dist.astype(">f4"),
        np.asfortranarray(dist),
        np.repeat(dist, 2, axis=1)[:, ::2],
        dist[::-1][::-1],
        frozen,
        dist.tolist(),
        tensor.half(),
        tensor.bfloat16(),
        tensor.double(),
        tensor.T.contiguous().T,
        tensor.clone().requires_grad_(),
    ]
    for variant in variants:
        assert_same(evaluate_llcm(variant, *pids, *cams), expected)
    assert tensor.equal(torch.from_numpy(dist.copy()))
    as_tensors = [torch.from_numpy(side) for side in (*pids, *cams)]
    assert_same(evaluate_llcm(tensor, *as_tensors), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("rule", "unit"), CONVENTIONS)
def test_gpu_agrees_with_the_plain_loop(rule, unit):
    rng = np.random.default_rng(2)
    dist = rng.integers(0, 40, (50, 200)).astype(np.float32)
    case = (
        rng.integers(0, 30, 50),
        rng.integers(0, 30, 200),
        rng.choice([3, 6], 50),
        rng.choice([1, 2, 3], 200),
    )
    result = evaluate_ranking(torch.from_numpy(dist).cuda(), *case, camera_rule=rule, cmc=unit, chunk=16)
    assert_same(result, reference_ranking(dist, *case, camera_rule=rule, cmc=unit))


def test_far_fewer_gallery_than_query_identities_stay_cheap():
    # One gallery image and a hundred thousand query identities: work grows with the distances alone.
    result = evaluate_ranking(
        np.zeros((100_000, 1), np.float32), np.arange(100_000), [7], camera_rule="none", cmc="identity"
    )
    assert (result.queries, result.skipped) == (1, 99_999)


ONE = np.zeros((1, 2), np.float32)


@pytest.mark.parametrize(
    ("dist", "labels", "rule"),
    [
        pytest.param(ONE, ([1, 2], [1, 2]), "none", id="too many query labels"),
        pytest.param(ONE, ([1], [1]), "none", id="too few gallery labels"),
        pytest.param(ONE, ([1], [1, 2], [1], [1]), "same_camera", id="too few cameras"),
        pytest.param(ONE, ([1], [1, 2], [1], [1]), "none", id="too few cameras that no rule needs"),
        pytest.param(ONE, ([1], [1, 2]), "same_camera", id="no cameras"),
        pytest.param(ONE, ([1], [1, 2], ["3"], ["1", "2"]), "sysu", id="camera names for SYSU"),
        pytest.param(ONE, ([1], ["1", "2"]), "none", id="integers against strings"),
        pytest.param(ONE, ([1.0], [1.0, 2.0]), "none", id="float labels"),
        pytest.param(ONE, ([1], np.array(["1", None], object)), "none", id="missing label"),
        pytest.param(ONE, ([3], [1, 2]), "none", id="no match at all"),
        pytest.param(ONE, ([1], [1, 2], [5], [5, 6]), "same_camera", id="no match after the rule"),
        pytest.param(np.zeros((0, 2)), ([], [1, 2]), "none", id="no query"),
        pytest.param(np.zeros((1, 0)), ([1], []), "none", id="no gallery"),
        pytest.param(np.zeros(2), ([1], [1, 2]), "none", id="one dimension"),
        pytest.param(np.array([[0.0, np.nan]]), ([1], [1, 2]), "none", id="NaN"),
        pytest.param(np.array([[np.inf, 0.0]]), ([1], [1, 2]), "none", id="infinity"),
        pytest.param(np.array([[0.0, -np.inf]], "f4"), ([1], [1, 2]), "none", id="negative infinity"),
        pytest.param(ONE, ([1], [1, 2]), "market", id="unknown rule"),
    ],
)
def test_refuses(dist, labels, rule):
    with pytest.raises(ProtocolError) as caught:
        evaluate_ranking(dist, *labels, camera_rule=rule, cmc="image")
    assert caught.value.hint


@pytest.mark.parametrize("options", [{"cmc": "person"}, {"cmc": "image", "max_rank": 0}, {"cmc": "image", "chunk": 0}])
def test_refuses_options(options):
    with pytest.raises(ProtocolError):
        evaluate_ranking(ONE, [1], [1, 2], camera_rule="none", **options)


def test_a_bad_distance_is_named_by_its_place_in_the_whole_matrix():
    dist = np.zeros((5, 3), np.float32)
    dist[4, 1] = np.nan
    with pytest.raises(ProtocolError, match=r"query 4 .*image 1 .*nan"):
        evaluate_ranking(dist, [1] * 5, [1, 2, 3], camera_rule="none", cmc="image", chunk=2)


def test_cosine_distance():
    # (3, 4) and (4, 3): cos = 24/25; (3, 4) and (-30, -40): cos = -1; lengths do not matter.
    query, gallery = np.array([[3.0, 4.0]], np.float16), np.array([[4.0, 3.0], [-30.0, -40.0]])
    dist = cosine_distance(query, gallery)
    assert isinstance(dist, np.ndarray) and dist.dtype == np.float32
    np.testing.assert_allclose(dist, [[1 / 25, 2]], atol=1e-6)
    as_tensor = cosine_distance(torch.from_numpy(query), gallery)
    assert isinstance(as_tensor, torch.Tensor)
    np.testing.assert_allclose(as_tensor.numpy(), dist)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("side", [0, 1])
def test_cosine_distance_refuses_rows_without_a_direction(bad, side):
    features = [np.ones((4, 3), np.float32), np.ones((4, 3), np.float32)]
    features[side][2] = bad
    with pytest.raises(ProtocolError, match="row 2"):
        cosine_distance(*features)


@pytest.mark.parametrize(("query", "gallery"), [((2, 3), (2, 4)), ((2,), (2, 2)), ((0, 3), (2, 3)), ((2, 3), (2, 0))])
def test_cosine_distance_refuses_shapes(query, gallery):
    with pytest.raises(ProtocolError):
        cosine_distance(np.ones(query), np.ones(gallery))
