from __future__ import annotations

import pytest
import torch
from torch import nn

from icre import config
from icre.model.network import ICRENetwork
from icre.training.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
from tests.icre.training.tiny_training import tiny_network, tiny_recipe

SGD = config.Schedule()
ADAM = config.Schedule(warmup_epochs=0, milestones=(80, 120))


@pytest.mark.parametrize("components", [[], ["mpfr"], ["sdce"], ["mpfr", "sdce", "icg"]])
def test_two_groups_the_backbone_and_what_is_new(components: list[str]) -> None:
    recipe = tiny_recipe(components=components)
    network = tiny_network(recipe)
    backbone, new = build_optimizer(network, recipe.optimizer).param_groups
    assert (backbone["lr"], new["lr"]) == (0.01, 0.02)
    frozen = [network.head.neck.bias]
    shared = list(network.backbone.parameters())
    rest = [p for name, child in network.named_children() if name != "backbone" for p in child.parameters()]
    assert ids(backbone["params"]) == ids(shared)
    assert ids(new["params"]) == ids(rest) - ids(frozen)
    assert len(backbone["params"]) + len(new["params"]) == len(shared) + len(rest) - 1


def ids(parameters: list[nn.Parameter]) -> set[int]:
    return {id(parameter) for parameter in parameters}


def stepped(network: ICRENetwork, settings: config.Optimizer, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A backbone's and a new weight after steps with the gradients 1, 2, ..."""
    shared, new = network.backbone.layer1[0].conv1.weight, network.head.classifier.weight
    optimizer = build_optimizer(network, settings)
    for step in range(steps):
        for weight in (shared, new):
            weight.grad = torch.full_like(weight, step + 1)
        optimizer.step()
    return shared.detach(), new.detach()


def test_sgd_is_nesterov_with_an_l2_penalty() -> None:
    network = tiny_network(tiny_recipe())
    starts = [network.backbone.layer1[0].conv1.weight.clone(), network.head.classifier.weight.clone()]
    settings = config.Optimizer(lr=0.02, backbone_lr=0.003, weight_decay=0.1)
    for w, lr, found in zip(starts, (0.003, 0.02), stepped(network, settings, 3), strict=True):
        velocity = torch.zeros_like(w)
        for gradient in (1, 2, 3):
            g = gradient + 0.1 * w
            velocity = 0.9 * velocity + g
            w = w - lr * (g + 0.9 * velocity)
        torch.testing.assert_close(found, w.detach())


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_has_an_l2_penalty_and_adamw_shrinks_apart_from_the_gradient(name: config.OptimizerName) -> None:
    network = tiny_network(tiny_recipe())
    starts = [network.backbone.layer1[0].conv1.weight.clone(), network.head.classifier.weight.clone()]
    settings = config.Optimizer(name=name, lr=0.02, backbone_lr=0.003, weight_decay=0.1)
    for w, lr, found in zip(starts, (0.003, 0.02), stepped(network, settings, 3), strict=True):
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        for t in (1, 2, 3):
            g = t + (0.1 * w if name == "adam" else 0)
            w = w if name == "adam" else w - lr * 0.1 * w
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            w = w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        torch.testing.assert_close(found, w.detach())


@pytest.mark.parametrize(
    ("schedule", "epoch", "factor"),
    [
        (SGD, 0, 0.1),
        (SGD, 2.5, 0.325),
        (SGD, 5, 0.55),
        (SGD, 10, 1),
        (SGD, 19.999, 1),
        (SGD, 20, 0.1),
        (SGD, 49.999, 0.1),
        (SGD, 50, 0.01),
        (SGD, 79, 0.01),
        (ADAM, 0, 1),
        (ADAM, 79, 1),
        (ADAM, 80, 0.1),
        (ADAM, 120, 0.01),
        (ADAM, 139, 0.01),
        # A milestone inside the warm-up counts as well.
        (config.Schedule(warmup_epochs=4, milestones=(2,), gamma=0.5), 2, 0.275),
    ],
)
def test_learning_rate_over_the_epochs(schedule: config.Schedule, epoch: float, factor: float) -> None:
    assert learning_rate_factor(epoch, schedule) == pytest.approx(factor, rel=1e-12)


def test_factors_apply_to_the_peak_and_do_not_add_up() -> None:
    recipe = tiny_recipe(optimizer={"lr": 0.1, "backbone_lr": 0.01})
    network = tiny_network(recipe)
    optimizer = build_optimizer(network, recipe.optimizer)
    for epoch, (backbone, new) in ((0, (0.001, 0.01)), (5, (0.0055, 0.055)), (20, (0.001, 0.01)), (10, (0.01, 0.1))):
        set_learning_rate(optimizer, learning_rate_factor(epoch, SGD))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([backbone, new])
