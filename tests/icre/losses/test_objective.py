from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from icre.config import Icg, Loss
from icre.losses.icg import icg_loss
from icre.losses.objective import Objective
from icre.losses.triplet import batch_hard_triplet, hetero_center_triplet, weighted_regularized_triplet

PIDS = torch.arange(16) // 4
INFRARED = torch.arange(16) % 2 == 0
OBJECTIVE = Objective(Loss(), icg=True)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(16, 4, generator=generator), torch.randn(16, 8, generator=generator)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    probabilities = logits.double().softmax(1)
    return -torch.stack([p[y].log() for p, y in zip(probabilities, labels, strict=True)]).mean()


def test_loss_is_the_identity_loss_and_the_weighted_clues() -> None:
    logits, features = batch()
    settings = Icg(weight=0.5, rho1=0.3, rho2=4.0, normalize=False)
    terms = Objective(Loss(icg=settings), icg=True)(logits, PIDS, features, PIDS, INFRARED)
    pull, push = icg_loss(features, PIDS, INFRARED, settings)
    assert set(terms) == {"loss", "id", "icg_pull", "icg_push"}
    assert terms["icg_pull"] == pull and terms["icg_push"] == push and push > 0
    assert terms["id"].item() == pytest.approx(cross_entropy(logits, PIDS).item(), rel=1e-5)
    assert terms["loss"].item() == pytest.approx((terms["id"] + 0.5 * (pull + push)).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, torch.tensor(0.0)),
        ({"triplet": "batch_hard"}, batch_hard_triplet(batch()[1], PIDS)),
        ({"triplet": "weighted_regularized"}, weighted_regularized_triplet(batch()[1], PIDS)),
        ({"triplet": "hetero_center"}, hetero_center_triplet(batch()[1], PIDS, INFRARED)),
    ],
)
def test_without_icg_the_loss_is_identity_and_the_chosen_triplet(options: dict[str, Any], want: Tensor) -> None:
    logits, features = batch()
    settings = Loss(icg=Icg(normalize=False), **options)
    terms = Objective(settings, icg=False)(logits, PIDS, features, PIDS, INFRARED)
    assert "icg_pull" not in terms and ("triplet" in terms) == bool(options)
    assert terms["loss"].item() == pytest.approx((terms["id"] + want).item(), rel=1e-6)


def test_the_triplet_has_a_scale_of_its_own() -> None:
    logits, features = batch()
    objective = Objective(Loss(icg=Icg(normalize=False), triplet="batch_hard", triplet_normalize=True), icg=False)
    long = objective(logits, PIDS, 9 * features, PIDS, INFRARED)
    short = objective(logits, PIDS, features, PIDS, INFRARED)
    torch.testing.assert_close(long, short)


def test_workers_average_to_the_loss_of_the_whole_batch() -> None:
    logits, features = batch()
    whole = OBJECTIVE(logits, PIDS, features, PIDS, INFRARED)
    halves = [OBJECTIVE(logits[cut], PIDS[cut], features, PIDS, INFRARED) for cut in (slice(0, 8), slice(8, 16))]
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value)


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits, features = batch()
    half = OBJECTIVE(logits.bfloat16(), PIDS, features, PIDS, INFRARED)
    full = OBJECTIVE(logits.bfloat16().float(), PIDS, features, PIDS, INFRARED)
    assert half["id"].dtype == torch.float32 and half["id"] == full["id"]
