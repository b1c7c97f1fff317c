from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from icre.config import Recipe, parse_recipe
from icre.errors import WeightsError
from icre.model.backbone import ARCHITECTURES, Architecture
from icre.model.build import build_network

SETTINGS: dict[str, Any] = {"backbone": "resnet18", "dim": 12, "heads": 3}


@pytest.fixture(autouse=True)
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "resnet18", Architecture("basic", (1, 1, 1, 1), width=4))


def recipe(seed: int = 0, components: tuple[str, ...] = ("mpfr", "sdce", "icg"), **model: Any) -> Recipe:
    values = {
        "seed": seed,
        "components": components,
        "data": {"height": 64, "width": 32},
        "model": SETTINGS | model,
    }
    return parse_recipe(values, where="the test")


def test_every_tensor_follows_from_the_seed() -> None:
    torch.manual_seed(1)
    one = build_network(recipe(), classes=5).state_dict()
    torch.manual_seed(2)
    again, other = (build_network(recipe(seed), classes=5).state_dict() for seed in (0, 1))
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not torch.equal(one["head.classifier.weight"], other["head.classifier.weight"])


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    build_network(recipe(), classes=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_recipe_arrives_in_the_network() -> None:
    model = {"mpfr_stages": [2, 4], "mpfr_mask": "softmax", "sdce_order": "self_cross"}
    network = build_network(recipe(**model), classes=5)
    assert network.mpfr is not None and network.sdce is not None
    assert network.mpfr.stages == (2, 4)
    assert network.mpfr.mask.kind == "softmax"
    assert [stage.norm_context is None for stage in network.sdce.cascade] == [True, False]
    assert network.sdce.cascade[0].attention.heads == 3
    assert network.sdce.deep_position.shape == (1, 12, 4, 2)
    assert network.head.classifier.weight.shape == (5, 32)


@pytest.mark.parametrize("components", [(), ("mpfr",), ("sdce",), ("sdce", "icg"), ("icg",)])
def test_components_of_the_recipe(components: tuple[str, ...]) -> None:
    network = build_network(recipe(components=components), classes=5)
    assert (network.mpfr is not None, network.sdce is not None) == ("mpfr" in components, "sdce" in components)


def test_pretrained_weights_replace_the_backbone_alone(tmp_path: Path) -> None:
    donor = build_network(recipe(seed=7), classes=5).backbone.state_dict()
    public = {k.removeprefix("stem.visible."): v for k, v in donor.items() if not k.startswith("stem.infrared.")}
    torch.save(public, tmp_path / "r18.pth")
    start = build_network(recipe(), classes=5)
    network = build_network(recipe(), classes=5, weights=tmp_path / "r18.pth")
    assert all(torch.equal(value, donor[name]) for name, value in network.backbone.state_dict().items())
    assert torch.equal(network.head.classifier.weight, start.head.classifier.weight)


def test_the_checksum_of_the_recipe_is_checked(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "r18.pth")
    with pytest.raises(WeightsError, match=64 * "0"):
        build_network(recipe(weights="r18.pth", weights_sha256=64 * "0"), classes=5, weights=tmp_path / "r18.pth")
