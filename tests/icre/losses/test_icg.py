from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from icre.config import Icg
from icre.losses.icg import icg_loss, pairwise_distances


def reference(
    features: Tensor,
    pids: list[int],
    infrared: list[bool],
    rho1: float,
    rho2: float,
    normalize: bool,
    reading: Any,
) -> tuple[Tensor, Tensor, float]:
    """The equations read word by word, in float64; and how near the closest hinge is to its kink."""
    rows = [r / r.norm() if normalize else r for r in features.double()]
    if reading == "joint":
        infrared = [False] * len(rows)
    centers: dict[tuple[int, bool], Tensor] = {}
    for key in set(zip(pids, infrared, strict=True)):
        own = [r for r, *k in zip(rows, pids, infrared, strict=True) if tuple(k) == key]
        centers[key] = sum(own[1:], own[0]) / len(own)
    zero = features.double().sum() * 0
    pulls, pushes, slack = [], [], math.inf
    for row, pid, infra in zip(rows, pids, infrared, strict=True):
        pulling = {"cross": [not infra], "both": [False, True], "joint": [False]}[reading]
        for center in (centers[pid, m] for m in pulling if (pid, m) in centers):
            excess = distance(row, center) - rho1
            slack = min(slack, abs(excess.item()))
            pulls.append(excess if excess > 0 else zero)
    for (p, m), (q, n) in product(centers, centers):
        if p != q:
            lack = rho2 - distance(centers[p, m], centers[q, n])
            slack = min(slack, abs(lack.item()))
            pushes.append(lack if lack > 0 else zero)
    return sum(pulls, zero) / max(len(pulls), 1), sum(pushes, zero) / max(len(pushes), 1), slack


def distance(a: Tensor, b: Tensor) -> Tensor:
    square = ((a - b) ** 2).sum()
    return square.sqrt() if square > 1e-12 else torch.tensor(1e-6, dtype=torch.float64)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, list[int], list[bool]]:
    """Few identities, so that some have one image or lack a modality; some batches repeat their features."""
    size = draw(st.integers(1, 12))
    pids = draw(st.lists(st.sampled_from([3, 5, 70]), min_size=size, max_size=size))
    infrared = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    features = torch.randn(size, draw(st.integers(2, 5)), generator=generator)
    if draw(st.booleans()):
        features = features[torch.randint(min(size, 3), (size,), generator=generator)]
    return features, pids, infrared


@settings(max_examples=300, deadline=None)
@given(
    batches(),
    st.sampled_from([0.01, 0.1, 0.5]),
    st.sampled_from([0.2, 0.7, 2.5]),
    st.booleans(),
    st.sampled_from(["cross", "both", "joint"]),
)
def test_value_and_gradient_agree_with_the_plain_loop(
    batch: tuple[Tensor, list[int], list[bool]], rho1: float, rho2: float, normalize: bool, reading: Any
) -> None:
    features, pids, infrared = batch
    want_features = features.clone().requires_grad_()
    *want, slack = reference(want_features, pids, infrared, rho1, rho2, normalize, reading)
    assume(slack > 1e-4)

    got_features = features.clone().requires_grad_()
    got = icg_loss(
        got_features,
        torch.tensor(pids),
        torch.tensor(infrared),
        Icg(rho1=rho1, rho2=rho2, normalize=normalize, centers=reading),
    )
    for got_term, want_term in zip(got, want, strict=True):
        assert got_term.item() == pytest.approx(want_term.item(), abs=2e-6)
    # Weights 1 and 2, so that an exchange of the two terms shows.
    (got_gradient,) = torch.autograd.grad(got.pull + 2 * got.push, got_features)
    (want_gradient,) = torch.autograd.grad(want[0] + 2 * want[1], want_features)
    torch.testing.assert_close(got_gradient, want_gradient, rtol=1e-3, atol=1e-5)


def test_no_loss_when_modalities_agree_and_identities_are_far_apart() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 6.0]])
    features, pids = rows.repeat(4, 1), torch.arange(3).repeat(4)
    infrared = torch.arange(12) >= 6
    terms = icg_loss(features, pids, infrared, Icg(rho1=0.0, rho2=3.6, normalize=False))
    assert terms.pull.item() == pytest.approx(1e-6, abs=1e-9)  # the clamp under the root
    assert terms.push.item() == 0
    nearer = icg_loss(features, pids, infrared, Icg(rho1=0.0, rho2=3.7, normalize=False))
    assert nearer.push.item() == pytest.approx(2 * (3.7 - math.sqrt(13)) / 6, rel=1e-4)


def test_features_exactly_at_the_two_margins_cost_nothing_and_stay_finite() -> None:
    features = torch.tensor([[0.0], [0.5], [2.0], [2.5]], requires_grad=True)
    terms = icg_loss(
        features,
        torch.tensor([1, 1, 2, 2]),
        torch.tensor([False, True, False, True]),
        Icg(rho1=0.5, rho2=1.5, normalize=False),
    )
    (gradient,) = torch.autograd.grad(terms.pull + terms.push, features)
    assert (terms.pull.item(), terms.push.item()) == (0, 0)
    assert torch.equal(gradient, torch.zeros(4, 1))


def test_gradient_is_finite_where_all_features_are_one_point() -> None:
    features = torch.ones(8, 16, requires_grad=True)
    terms = icg_loss(features, torch.arange(8) // 4, torch.arange(8) % 2 == 0, Icg(rho1=0.0))
    (gradient,) = torch.autograd.grad(terms.pull + terms.push, features)
    assert terms.push.item() == pytest.approx(0.7, abs=1e-5)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("pids", [[1, 1, 1], [1, 2, 3]])
def test_a_batch_of_one_modality_has_no_pull_and_still_a_gradient(pids: list[int]) -> None:
    features = torch.randn(3, 4, requires_grad=True)
    terms = icg_loss(features, torch.tensor(pids), torch.ones(3, dtype=torch.bool), Icg(rho2=9.0))
    assert terms.pull.item() == 0
    assert (terms.push.item() > 0) == (len(set(pids)) > 1)
    (gradient,) = torch.autograd.grad(terms.pull + terms.push, features)
    assert torch.isfinite(gradient).all()


def test_the_order_of_the_batch_does_not_matter() -> None:
    features, pids, infrared = torch.randn(24, 8), torch.arange(24) // 6, torch.arange(24) % 3 == 0
    shuffle = torch.randperm(24)
    one = icg_loss(features, pids, infrared, Icg())
    other = icg_loss(features[shuffle], pids[shuffle], infrared[shuffle], Icg())
    torch.testing.assert_close(torch.stack(one), torch.stack(other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalize", [True, False])
def test_half_precision_costs_only_the_rounding_of_the_input(dtype: torch.dtype, normalize: bool) -> None:
    features = torch.randn(16, 32, dtype=dtype, requires_grad=True)
    pids, infrared = torch.arange(16) // 4, torch.arange(16) % 2 == 0
    exact = icg_loss(features.detach().float(), pids, infrared, Icg(normalize=normalize))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = icg_loss(features, pids, infrared, Icg(normalize=normalize))
    assert terms.pull.dtype == terms.push.dtype == torch.float32
    assert torch.equal(torch.stack(terms), torch.stack(exact))
    (gradient,) = torch.autograd.grad(sum(terms, torch.tensor(0.0)), features)
    assert gradient.dtype == dtype and torch.isfinite(gradient).all()


def test_distances_of_near_rows_far_from_the_origin_keep_their_digits() -> None:
    rows = torch.full((2, 64), 100.0)
    rows[1, 0] += 0.001
    want = float(rows[1, 0].double() - 100)
    assert pairwise_distances(rows)[0, 1].item() == pytest.approx(want, rel=1e-4)
