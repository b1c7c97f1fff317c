from __future__ import annotations

from typing import Any

import pytest
import torch

from icre.model.backbone import ARCHITECTURES, Architecture
from icre.model.network import ICRENetwork

TINY = Architecture("bottleneck", (1, 1, 1, 1), width=4)
IMAGES = torch.randn(8, 3, 64, 32, generator=torch.Generator().manual_seed(0))
INFRARED = torch.arange(8) % 2 == 1

VARIANTS: list[dict[str, Any]] = [
    {},
    {"components": {"mpfr"}},
    {"components": {"sdce"}},
    {"components": {"sdce"}, "sdce_order": "self"},
    {"mpfr_mask": "softmax", "sdce_order": "self_cross"},
    {"mpfr_mask": "none", "sdce_order": "cross", "mpfr_stages": (2, 3, 4)},
]


def tiny(**options: Any) -> ICRENetwork:
    torch.manual_seed(5)
    return ICRENetwork(TINY, classes=4, input_size=(64, 32), dim=8, heads=2, **options)


def baseline_of(network: ICRENetwork) -> ICRENetwork:
    """The network without MPFR and SDCE, with the same weights."""
    baseline = tiny(components=())
    own = network.state_dict()
    baseline.load_state_dict({name: own[name] for name in baseline.state_dict()})
    return baseline.train(network.training)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("training", [True, False])
def test_training_starts_exactly_at_the_baseline(options: dict[str, Any], training: bool) -> None:
    network = tiny(**options).train(training)
    baseline = baseline_of(network)
    x4 = baseline.backbone(IMAGES, INFRARED).x4
    assert torch.equal(network.feature_map(IMAGES, INFRARED), x4.relu())
    assert torch.equal(network.embed(IMAGES, INFRARED), baseline.embed(IMAGES, INFRARED))


@pytest.mark.parametrize("options", VARIANTS)
def test_after_one_step_every_new_parameter_has_a_gradient(options: dict[str, Any]) -> None:
    """In float64, where a gradient that only rounding makes non-zero stays under the threshold."""
    network = tiny(**options).double().train()
    images = IMAGES.double()
    target = torch.randn(8, 128, 4, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        network.zero_grad()
        torch.autograd.backward((network.feature_map(images, INFRARED) * target).mean())
        optimizer.step()
    new = {
        name: parameter.grad
        for name, parameter in network.named_parameters()
        if not name.startswith(("backbone.", "head."))
    }
    assert len(new) > 5
    assert [name for name, grad in new.items() if grad is None or grad.abs().max() < 1e-12] == []


@pytest.mark.parametrize("options", VARIANTS[:4])
def test_each_component_reads_what_the_table_says(options: dict[str, Any]) -> None:
    network = tiny(**options).eval()
    assert network.output is not None
    torch.nn.init.ones_(network.output.bn0.weight)
    with torch.no_grad():
        maps = network.backbone(IMAGES, INFRARED)
        z = None
        if network.mpfr is not None:
            z = network.mpfr(maps).fused_BdHW
        elif options.get("sdce_order") != "self":
            assert network.align is not None
            z = network.align(maps.x3, (4, 2))
        if network.sdce is not None:
            z = network.sdce(maps.x4, z)
        want = (maps.x4 + network.output.bn0(network.output.conv(z))).relu()
        got = network.feature_map(IMAGES, INFRARED)
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, maps.x4, atol=1e-3)


@pytest.mark.parametrize("components", [(), ("mpfr",), ("sdce",), ("mpfr", "sdce")])
def test_every_trainable_parameter_is_used(components: tuple[str, ...]) -> None:
    network = tiny(components=components)
    network(IMAGES, INFRARED).logits.sum().backward()
    unused = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


@pytest.mark.parametrize(("size", "places"), [((288, 144), (18, 9)), ((384, 144), (24, 9)), ((384, 192), (24, 12))])
def test_shapes_at_the_published_input_sizes(size: tuple[int, int], places: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = ICRENetwork(ARCHITECTURES["resnet50"], classes=395, input_size=size)
        images = torch.empty(2, 3, *size)
        output, masks = network(images, True), network.masks(images, True)
        enhanced = network.feature_map(images, True)
    assert output.features.shape == output.embeddings.shape == (2, 2048)
    assert output.logits.shape == (2, 395)
    assert masks.shape == (2, 3, *places) and enhanced.shape == (2, 2048, *places)
    assert network.sdce is not None and network.sdce.deep_position.shape == (1, 512, *places)


def test_size_of_the_published_network() -> None:
    with torch.device("meta"):
        network = ICRENetwork(ARCHITECTURES["resnet50"], classes=395)
    assert 33e6 < sum(p.numel() for p in network.parameters()) < 36e6


def test_rows_keep_their_order_and_modality() -> None:
    network = tiny().eval()
    torch.nn.init.normal_(network.backbone.stem.infrared.conv1.weight, std=0.1)
    with torch.no_grad():
        mixed = network.embed(IMAGES, INFRARED)
        alone = torch.cat([network.embed(x[None], bool(i)) for x, i in zip(IMAGES, INFRARED, strict=True)])
        swapped = network.embed(IMAGES, ~INFRARED)
    torch.testing.assert_close(mixed, alone, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(mixed, swapped, atol=1e-3)


def test_embeddings_have_length_one_and_the_direction_of_g() -> None:
    network = tiny().eval()
    with torch.no_grad():
        g, unit = network(IMAGES, INFRARED).embeddings, network.embed(IMAGES, INFRARED)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(unit * g.norm(dim=1, keepdim=True), g)


def test_another_input_size_is_accepted() -> None:
    with torch.no_grad():
        assert tiny().eval().embed(torch.randn(2, 3, 100, 52), False).shape == (2, 128)


def test_masks_are_those_of_mpfr_and_need_it() -> None:
    network = tiny(mpfr_mask="softmax").eval()
    with torch.no_grad():
        torch.testing.assert_close(network.masks(IMAGES, INFRARED).sum(1), torch.ones(8, 4, 2))
    with pytest.raises(ValueError, match="mpfr"):
        tiny(components={"sdce"}).masks(IMAGES, INFRARED)


def test_parameter_groups_split_the_backbone_from_the_rest() -> None:
    network = tiny()
    groups = dict(network.parameter_groups())
    parameters = dict(network.named_parameters())
    backbone = {id(p) for p in network.backbone.parameters()}
    assert set(parameters) - set(groups) == {"head.neck.bias"}
    assert {name for name, is_backbone in groups.items() if is_backbone} == {
        name for name, parameter in parameters.items() if id(parameter) in backbone
    }


def test_autocast_keeps_what_the_losses_read_in_float32() -> None:
    network = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(IMAGES, INFRARED)
    assert output.features.dtype == output.embeddings.dtype == torch.float32
    output.features.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": {"mpfr", "icg"}}, "icg"),
        ({"sdce_order": "self"}, "sdce_order"),
        ({"mpfr_stages": (4, 3)}, "stages"),
        ({"mpfr_mask": "relu"}, "mask"),
    ],
)
def test_networks_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)
