from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from icre.losses.triplet import batch_hard_triplet, hetero_center_triplet, weighted_regularized_triplet

MARGIN = 0.3
Labels = list[tuple[int, bool]]


def distance(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum().sqrt()


def split(labels: Labels, anchor: int) -> tuple[list[int], list[int]]:
    pids = [pid for pid, _ in labels]
    positive = [j for j, pid in enumerate(pids) if pid == pids[anchor] and j != anchor]
    return positive, [j for j, pid in enumerate(pids) if pid != pids[anchor]]


def batch_hard(rows: list[Tensor], labels: Labels) -> list[Tensor]:
    terms = []
    for i, row in enumerate(rows):
        positive, negative = split(labels, i)
        if positive and negative:
            hardest = max(distance(row, rows[j]) for j in positive)
            nearest = min(distance(row, rows[j]) for j in negative)
            terms.append(torch.relu(MARGIN + hardest - nearest))
    return terms


def weighted(rows: list[Tensor], labels: Labels) -> list[Tensor]:
    terms = []
    for i, row in enumerate(rows):
        positive, negative = split(labels, i)
        if positive and negative:
            far = [distance(row, rows[j]) for j in positive]
            near = [distance(row, rows[j]) for j in negative]
            high, low = [d.exp() for d in far], [(-d).exp() for d in near]
            pull = sum((w * d for w, d in zip(high, far, strict=True)), torch.tensor(0.0)) / sum(high)
            push = sum((w * d for w, d in zip(low, near, strict=True)), torch.tensor(0.0)) / sum(low)
            terms.append((1 + (pull - push).exp()).log())
    return terms


def hetero_center(rows: list[Tensor], labels: Labels) -> list[Tensor]:
    centers = {
        key: torch.stack([r for r, k in zip(rows, labels, strict=True) if k == key]).mean(0) for key in set(labels)
    }
    terms = []
    for (pid, infrared), center in centers.items():
        negative = [distance(center, c) for (q, _), c in centers.items() if q != pid]
        if (pid, not infrared) in centers and negative:
            positive = distance(center, centers[pid, not infrared])
            terms.append(torch.relu(MARGIN + positive - min(negative)))
    return terms


def ours_batch_hard(features: Tensor, pids: Tensor, _: Tensor, normalize: bool) -> Tensor:
    return batch_hard_triplet(features, pids, margin=MARGIN, normalize=normalize)


def ours_weighted(features: Tensor, pids: Tensor, _: Tensor, normalize: bool) -> Tensor:
    return weighted_regularized_triplet(features, pids, normalize=normalize)


def ours_hetero_center(features: Tensor, pids: Tensor, infrared: Tensor, normalize: bool) -> Tensor:
    return hetero_center_triplet(features, pids, infrared, margin=MARGIN, normalize=normalize)


Ours = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
PAIRS = [(ours_batch_hard, batch_hard), (ours_weighted, weighted), (ours_hetero_center, hetero_center)]
LABELS = st.lists(st.tuples(st.sampled_from([4, 9, 11]), st.booleans()), min_size=1, max_size=10)


def tensors(labels: Labels) -> tuple[Tensor, Tensor]:
    return torch.tensor([pid for pid, _ in labels]), torch.tensor([infrared for _, infrared in labels])


@pytest.mark.parametrize(("ours", "loop"), PAIRS)
@settings(max_examples=60, deadline=None)
@given(labels=LABELS, seed=st.integers(0, 2**31), normalize=st.booleans())
def test_value_and_gradient_agree_with_the_plain_loop(
    ours: Ours,
    loop: Callable[[list[Tensor], Labels], list[Tensor]],
    labels: Labels,
    seed: int,
    normalize: bool,
) -> None:
    base = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed))
    want_features = base.double().requires_grad_()
    terms = loop([r / r.norm() if normalize else r for r in want_features], labels)
    assume(all(t.item() == 0 or t.item() > 1e-4 for t in terms))
    want = torch.stack(terms).mean() if terms else want_features.sum() * 0

    features = base.clone().requires_grad_()
    got = ours(features, *tensors(labels), normalize)
    assert got.item() == pytest.approx(want.item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(got, features)
    (want_gradient,) = torch.autograd.grad(want, want_features)
    torch.testing.assert_close(gradient.double(), want_gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ours", [ours for ours, _ in PAIRS])
@pytest.mark.parametrize(
    "labels",
    [
        [(1, False)],
        [(1, False), (1, True)],
        [(1, False), (2, True)],
        [(1, False), (1, True), (2, False), (2, True)],
    ],
)
def test_identical_features_and_lone_images_give_finite_gradients(ours: Ours, labels: Labels) -> None:
    features = torch.ones(len(labels), 4, requires_grad=True)
    loss = ours(features, *tensors(labels), False)
    (gradient,) = torch.autograd.grad(loss, features)
    assert math.isfinite(loss.item()) and torch.isfinite(gradient).all()
    assert (loss.item() > 0) == (len(labels) == 4)


@pytest.mark.parametrize("ours", [ours for ours, _ in PAIRS])
def test_half_precision_and_autocast_cost_only_the_rounding_of_the_input(ours: Ours) -> None:
    features, labels = torch.randn(12, 8).bfloat16(), [(i // 4, i % 2 == 0) for i in range(12)]
    exact = ours(features.float(), *tensors(labels), False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ours(features, *tensors(labels), False)
    assert got.dtype == torch.float32 and torch.equal(got, exact)
