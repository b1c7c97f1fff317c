"""Counts against closed forms, against lists made by hand, and against a real network and optimiser on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from icre.config import Recipe, parse_recipe
from icre.model.backbone import ARCHITECTURES, Architecture
from icre.model.build import build_network
from icre.model.complexity import Complexity, complexity, component_grid
from icre.training.optimizer import build_optimizer

THIN = {
    "resnet18": Architecture("basic", (1, 1, 1, 1), width=4, stride_on_first_conv=True),
    "resnet50": Architecture("bottleneck", (1, 2, 1, 1), width=4),
}
B, K, D, HEADS = 8, 5, 12, 3
PLACES = 8
"""Places of X3 and X4, and so tokens, at 64x32."""
FULL: dict[str, Any] = {"components": ["mpfr", "sdce"]}


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, architecture in THIN.items():
        monkeypatch.setitem(ARCHITECTURES, name, architecture)


def recipe(values: dict[str, Any], *, height: int = 64, width: int = 32, **model: Any) -> Recipe:
    small = {
        "data": {"height": height, "width": width},
        "model": {"backbone": "resnet18", "dim": D, "heads": HEADS} | model,
        "batch": {"identities": 2, "visible": 2, "infrared": 2},
    }
    return parse_recipe(small | values, where="the test")


def cost(settings: Recipe) -> Complexity:
    return complexity(settings, classes=K)


def test_sizes_of_the_published_networks() -> None:
    grid = component_grid(Recipe(), classes=395)
    found = {key: (each.total.parameters / 1e6, each.total.macs / 1e9) for key, each in grid.items()}
    assert {key: (round(parameters, 2), round(macs, 2)) for key, (parameters, macs) in found.items()} == {
        (): (24.33, 5.13),
        ("mpfr",): (28.67, 5.83),
        ("sdce",): (31.32, 6.29),
        ("mpfr", "sdce"): (34.08, 6.73),
    }


@pytest.mark.usefixtures("thin")
def test_parameters_and_weights_are_those_of_a_built_network() -> None:
    network, found = build_network(recipe(FULL), classes=K), cost(recipe(FULL))
    assert found.total.parameters == sum(p.numel() for p in network.parameters())
    assert found.weight_bytes == sum(value.nbytes for value in network.state_dict().values())
    assert network.mpfr is not None and network.sdce is not None
    for name, part in (("mpfr", network.mpfr), ("sdce", network.sdce), ("layer3", network.backbone.layer3)):
        assert found.components[name].parameters == sum(p.numel() for p in part.parameters())


@pytest.mark.usefixtures("thin")
def test_macs_equal_the_closed_forms() -> None:
    """Convolution: k² · inputs · outputs · places; linear: inputs · outputs · tokens; attention: 2 · N² · d."""
    n, attention = PLACES, 4 * D * D * PLACES + 2 * PLACES**2 * D
    want = {
        "stem": 49 * 3 * 64 * 32 * 16,
        "layer1": (9 * 64 * 4 + 9 * 4 * 4 + 64 * 4) * 16 * 8,
        "layer2": (9 * 4 * 8 + 9 * 8 * 8 + 4 * 8) * 8 * 4,
        "layer3": (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16) * n,
        "layer4": (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32) * n,
        "mpfr": ((4 + 8 + 16) * D + 3 * D + 9 * D * D) * n,
        "sdce": 32 * D * n + 2 * attention + 2 * D * 4 * D * n,
        "output": D * 32 * n,
        "head": 32 * K,
    }
    found = cost(recipe(FULL))
    assert {name: part.macs for name, part in found.components.items()} == want
    assert found.total.macs == sum(want.values())
    align = 16 * D * n
    assert cost(recipe({"components": ["sdce"]})).components["align"].macs == align
    concat = cost(recipe(FULL, mpfr_fusion="concat")).components["mpfr"].macs
    assert concat - want["mpfr"] == 2 * 9 * D * D * n


@pytest.mark.usefixtures("thin")
def test_kept_bytes_equal_a_list_made_by_hand() -> None:
    """A convolution keeps its input, batch norm its input and two numbers a channel, ReLU its output."""
    n, tokens = PLACES, B * D * PLACES
    stem_map, padded = 64 * 32 * 16, 32
    # A layer norm keeps two numbers a token. The fused kernel keeps one a head and query, their count rounded up to
    # a multiple of 32, and the state of its random numbers, 2 x 8 bytes.
    norm, kernel = tokens + 2 * B * n, 4 * B * HEADS * padded + 2 * 8
    cross = 4 * (2 * (norm + tokens) + 4 * tokens) + kernel
    itself = 4 * (norm + tokens + 4 * tokens) + kernel
    want = {
        # The image; then batch norm and ReLU; the indices of the maximum have 8 bytes.
        "stem": 4 * (B * (3 * 64 * 32 + 2 * stem_map) + 2 * 64) + 8 * B * 64 * 16 * 8,
        # The map of the stem, read by two convolutions; three batch norms, two ReLUs.
        "layer1": 4 * (B * (64 + 5 * 4) * 16 * 8 + 3 * 2 * 4),
        # Its input is layer1's last ReLU.
        "layer2": 4 * (B * 5 * 8 * 8 * 4 + 3 * 2 * 8),
        # Layer norm, its output, the two sides of GELU; attention: q, k, v and what was read.
        "sdce": cross + itself + 4 * (norm + tokens + 2 * 4 * tokens),
        "output": 4 * (tokens + 2 * B * 32 * n + 2 * 32),
        # E is kept already. Clamped values, their mean, f, g.
        "head": 4 * (B * 32 * n + 3 * B * 32 + 2 * 32),
    }
    components = cost(recipe(FULL)).components
    assert {name: components[name].activation_bytes for name in want} == want


def kept_on_the_cpu(settings: Recipe) -> tuple[int, int]:
    """Bytes that a real mixed batch keeps for backward, and how many of its kernels are attention."""
    network = build_network(settings, classes=K).train()
    own = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    images = torch.rand(settings.batch.size, 3, settings.data.height, settings.data.width)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(images, torch.arange(len(images)) % 2 == 1)
    assert output.logits.requires_grad
    attentions = sum(type(module).__name__ == "Attention" for module in network.modules())
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in own), attentions


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize(
    ("values", "model"),
    [
        ({"components": []}, {}),
        ({"components": ["mpfr"]}, {"mpfr_mask": "softmax"}),
        ({"components": ["sdce"]}, {"backbone": "resnet50"}),
        ({"components": ["sdce"]}, {"sdce_order": "self"}),
        (FULL, {"mpfr_fusion": "concat"}),
        (FULL, {"backbone": "resnet50", "mpfr_stages": [2, 3, 4]}),
    ],
)
def test_kept_bytes_are_those_of_a_real_network(values: dict[str, Any], model: dict[str, Any]) -> None:
    """To the byte. At 32 tokens the CPU's attention keeps what CUDA's does, but for the state of random numbers."""
    settings = recipe(values, height=128, width=64, **model)
    real, attentions = kept_on_the_cpu(settings)
    other_stem, order = 4 * 2 * 64, 8 * settings.batch.size
    assert cost(settings).total.activation_bytes == real - other_stem - order + attentions * 2 * 8


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_gradients_and_optimiser_state_are_those_of_a_real_step(optimizer: str) -> None:
    settings = recipe(FULL | {"optimizer": {"name": optimizer}})
    network = build_network(settings, classes=K)
    built = build_optimizer(network, settings.optimizer)
    network(torch.rand(4, 3, 64, 32), torch.arange(4) % 2 == 1).logits.sum().backward()
    built.step()
    state = [value for entry in built.state.values() for value in entry.values() if isinstance(value, torch.Tensor)]
    found = cost(settings)
    assert found.gradient_bytes == sum(p.grad.nbytes for p in network.parameters() if p.grad is not None)
    assert found.optimizer_bytes == sum(value.nbytes for value in state if value.dim() > 0)
    assert found.training_bytes - found.weight_bytes - found.gradient_bytes - found.optimizer_bytes == (
        sum(part.activation_bytes for part in found.components.values())
    )


@pytest.mark.usefixtures("thin")
def test_the_grid_holds_the_networks_that_the_recipe_allows() -> None:
    settings = recipe({"components": ["icg", "mpfr"]}, mpfr_mask="none")
    grid = component_grid(settings, classes=K)
    assert list(grid) == [(), ("mpfr",), ("sdce",), ("mpfr", "sdce")]
    assert grid[("mpfr",)] == cost(settings)
    assert list(grid[()].components) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    only_self = component_grid(recipe({"components": ["sdce"]}, sdce_order="self"), classes=K)
    assert list(only_self) == [(), ("mpfr",), ("sdce",)]


@pytest.mark.usefixtures("thin")
def test_nothing_is_computed_and_no_state_is_left() -> None:
    """A batch that no machine could hold is counted, and new tensors and modules are as ever."""
    before = torch.get_rng_state()
    small, huge = (cost(recipe(FULL | {"batch": {"identities": count}})).total for count in (2, 10**9))
    assert huge.macs == small.macs
    assert huge.activation_bytes > 10**8 * small.activation_bytes
    assert torch.equal(torch.get_rng_state(), before)
    assert nn.Linear(2, 2)(torch.ones(1, 2)).device.type == "cpu"
