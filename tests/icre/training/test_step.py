from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from icre.config import Recipe
from icre.data.augmentation import AugmentationSpec, normalise
from icre.errors import TrainingError
from icre.losses.icg import icg_loss
from icre.losses.triplet import batch_hard_triplet
from icre.training.optimizer import build_optimizer
from icre.training.step import augmentation_spec, train_step
from tests.icre.training.tiny_training import Pixels, take_steps, tiny_network, tiny_recipe

PLAIN = {"pad": 0, "flip": 0, "erase": 0, "grayscale": 0, "channel_exchange": 0}


def one_step(recipe: Recipe, *, epoch: int = 0) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Loss terms of a first step, and the weights after it."""
    network = tiny_network(recipe)
    optimizer = build_optimizer(network, recipe.optimizer)
    batch = Pixels.random().batch(recipe, step=0)
    return train_step(network, optimizer, batch, recipe=recipe, epoch=epoch), network.state_dict()


# Loss terms


@pytest.mark.parametrize("normalize", [True, False])
def test_terms_are_those_of_the_recipe(normalize: bool) -> None:
    icg = {"weight": 0.5, "rho1": 0.02, "rho2": 30.0, "normalize": normalize}
    recipe = tiny_recipe(augmentation=PLAIN, loss={"icg": icg, "triplet": "batch_hard", "triplet_normalize": normalize})
    batch = Pixels.random().batch(recipe, step=0)
    with torch.no_grad():
        output = tiny_network(recipe)(normalise(batch.images), batch.infrared)
        pull, push = icg_loss(output.features, batch.labels, batch.infrared, recipe.loss.icg)
        triplet = batch_hard_triplet(output.features, batch.labels, normalize=normalize)
        identity = -output.logits.log_softmax(1)[range(16), batch.labels].mean()
    terms, _ = one_step(recipe)
    expected = {"id": identity, "icg_pull": pull, "icg_push": push, "triplet": triplet}
    expected["loss"] = identity + 0.5 * (pull + push) + triplet
    assert terms == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    assert pull > 0 and push > 0 and triplet > 0


def test_without_components_only_the_identity_loss_is_left() -> None:
    terms, _ = one_step(tiny_recipe(components=[]))
    assert terms.keys() == {"loss", "id"}
    assert terms["loss"] == terms["id"] > 0


def test_the_metric_loss_moves_the_weights() -> None:
    with_icg, without = (one_step(tiny_recipe(components=parts))[1] for parts in (["icg"], []))
    name = "backbone.layer1.0.conv1.weight"
    assert not torch.allclose(with_icg[name], without[name], rtol=1e-3)


# Learning


def test_one_batch_is_learnt_by_heart() -> None:
    recipe = tiny_recipe(augmentation=PLAIN, optimizer={"lr": 0.05, "backbone_lr": 0.02})
    network = tiny_network(recipe)
    optimizer = build_optimizer(network, recipe.optimizer)
    batch = Pixels.random().batch(recipe, step=0)
    terms = [train_step(network, optimizer, batch, recipe=recipe, epoch=0) for _ in range(30)]
    for term in ("loss", "id", "icg_pull"):
        assert terms[-1][term] < 0.5 * terms[0][term], term


def test_a_step_repeats_bit_for_bit() -> None:
    (terms, weights), (again, weights_again) = (one_step(tiny_recipe()) for _ in range(2))
    assert terms == again
    assert all(torch.equal(value, weights_again[name]) for name, value in weights.items())


def test_augmentation_follows_recipe_seed_and_epoch() -> None:
    losses = [
        one_step(tiny_recipe(), epoch=0)[0]["loss"],
        one_step(tiny_recipe(), epoch=1)[0]["loss"],
        one_step(tiny_recipe(augmentation=PLAIN), epoch=0)[0]["loss"],
    ]
    assert len(set(losses)) == 3
    assert one_step(tiny_recipe(augmentation=PLAIN), epoch=1)[0]["loss"] == losses[2]


def test_every_setting_of_the_augmentation_arrives() -> None:
    values = {"pad": 3, "flip": 0.11, "erase": 0.12, "grayscale": 0.13, "channel_exchange": 0.14}
    assert augmentation_spec(tiny_recipe(augmentation=values).augmentation) == AugmentationSpec(**values)


# Clipping


def update_norm(max_grad_norm: float | None) -> float:
    optimizer = {"lr": 0.01, "backbone_lr": 0.01, "weight_decay": 0, "max_grad_norm": max_grad_norm}
    recipe = tiny_recipe(optimizer=optimizer)
    before = dict(tiny_network(recipe).named_parameters())
    _, after = one_step(recipe)
    return float(torch.stack([(after[name] - value).detach().double().norm() for name, value in before.items()]).norm())


def test_the_gradient_is_clipped_to_the_norm_asked_for() -> None:
    # The first Nesterov step goes lr · (1 + momentum) along the gradient.
    gradient = update_norm(None) / 0.019
    assert gradient > 0.5
    assert update_norm(0.25) / 0.019 == pytest.approx(0.25, rel=1e-3)
    assert update_norm(10 * gradient) / 0.019 == pytest.approx(gradient, rel=1e-3)


# A loss that is not finite


def spoil(network: nn.Module, name: str, value: float) -> None:
    with torch.no_grad():
        network.get_parameter(name).view(-1)[0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "head.classifier.weight"),
        ({}, "backbone.stem.infrared.conv1.weight"),
        ({"components": []}, "backbone.stem.visible.bn1.bias"),
    ],
)
def test_a_loss_that_is_not_finite_stops_before_the_update(settings: dict[str, Any], name: str, value: float) -> None:
    recipe = tiny_recipe(**settings)
    network = tiny_network(recipe)
    optimizer = build_optimizer(network, recipe.optimizer)
    take_steps(network, optimizer, recipe, range(1))
    spoil(network, name, value)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    state = copy.deepcopy(optimizer.state_dict())
    batch = Pixels.random().batch(recipe, step=1)
    with pytest.raises(TrainingError, match=str(batch.rows.tolist()[0])):
        train_step(network, optimizer, batch, recipe=recipe, epoch=0)
    for n, p in network.named_parameters():
        assert torch.equal(p.nan_to_num(), before[n].nan_to_num()), n
    for key, values in optimizer.state_dict()["state"].items():
        assert torch.equal(values["momentum_buffer"], state["state"][key]["momentum_buffer"])


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_update(clip: float | None, factor: float) -> None:
    recipe = tiny_recipe(optimizer={"max_grad_norm": clip})
    network = tiny_network(recipe)
    optimizer = build_optimizer(network, recipe.optimizer)
    network.get_parameter("backbone.layer2.0.conv1.weight").register_hook(lambda gradient: gradient * factor)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    with pytest.raises(TrainingError, match="the gradient is not finite"):
        train_step(network, optimizer, Pixels.random().batch(recipe, step=0), recipe=recipe, epoch=0)
    assert all(torch.equal(p, before[n]) for n, p in network.named_parameters())
    assert not optimizer.state_dict()["state"]
