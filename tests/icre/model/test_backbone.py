from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icre.model.backbone import ARCHITECTURES, Architecture, DualStreamResNet

TINY = Architecture("bottleneck", (2, 1, 1, 1), width=4)
TINY_FIRST = Architecture("bottleneck", (2, 1, 1, 1), width=4, stride_on_first_conv=True)
TINY_BASIC = Architecture("basic", (2, 1, 1, 1), width=4, stride_on_first_conv=True)


def randomised(architecture: Architecture) -> DualStreamResNet:
    """A network in evaluation whose stems and statistics all differ."""
    generator = torch.Generator().manual_seed(0)
    backbone = DualStreamResNet(architecture).eval()
    for tensor in backbone.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(tensor * (0.5 + noise) if tensor.ndim > 1 else 0.5 + noise)
    return backbone


def plain_resnet(state: dict[str, Tensor], stem: str, image: Tensor, architecture: Architecture) -> list[Tensor]:
    """A ResNet written from its definition over the parameter names, one image at a time."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(x: Tensor, name: str, stride: int) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = norm(conv(image, f"stem.{stem}.conv1", 2), f"stem.{stem}.bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
        for block in range(architecture.layers[stage - 1]):
            name, step = f"layer{stage}.{block}", stride if block == 0 else 1
            count = 3 if architecture.block == "bottleneck" else 2
            strided = 1 if architecture.stride_on_first_conv else 2
            y = x
            for i in range(1, count + 1):
                y = norm(conv(y, f"{name}.conv{i}", step if i == strided else 1), f"{name}.bn{i}")
                y = y.relu() if i < count else y
            if f"{name}.downsample.0.weight" in state:
                x = norm(conv(x, f"{name}.downsample.0", step), f"{name}.downsample.1")
            x = (x + y).relu()
        maps.append(x)
    return maps


@pytest.mark.parametrize("architecture", [TINY, TINY_FIRST, TINY_BASIC])
def test_each_row_of_a_mixed_batch_is_a_plain_resnet_of_its_own_modality(architecture: Architecture) -> None:
    backbone = randomised(architecture)
    images = torch.randn(5, 3, 64, 48)
    infrared = torch.tensor([True, False, False, True, False])
    with torch.no_grad():
        got = backbone(images, infrared)
    for row, infra in enumerate(infrared.tolist()):
        want = plain_resnet(
            backbone.state_dict(), "infrared" if infra else "visible", images[row : row + 1], architecture
        )
        for got_map, want_map in zip(got, want, strict=True):
            torch.testing.assert_close(got_map[row], want_map[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "fine", "coarse"),
    [
        ((288, 144), (72, 36), (18, 9)),
        ((384, 144), (96, 36), (24, 9)),
        ((384, 192), (96, 48), (24, 12)),
    ],
)
def test_shapes_at_the_published_input_sizes(
    size: tuple[int, int], fine: tuple[int, int], coarse: tuple[int, int]
) -> None:
    with torch.device("meta"):
        maps = DualStreamResNet(ARCHITECTURES["resnet50"])(torch.empty(2, 3, *size), False)
    middle = (fine[0] // 2, fine[1] // 2)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (256, *fine),
        (512, *middle),
        (1024, *coarse),
        (2048, *coarse),
    ]


@pytest.mark.parametrize(("name", "public"), [("resnet18", 11_176_512), ("resnet50", 23_508_032)])
def test_parameters_are_the_public_ones_and_a_second_stem(name: str, public: int) -> None:
    """Public count: torchvision's, without ``fc``."""
    with torch.device("meta"):
        backbone = DualStreamResNet(ARCHITECTURES[name])
    stem = 64 * 3 * 7 * 7 + 2 * 64
    assert sum(p.numel() for p in backbone.parameters()) == public + stem


def test_channels_of_the_half_width_network() -> None:
    assert ARCHITECTURES["resnet50_half"].channels == (128, 256, 512, 1024)


@pytest.mark.parametrize("value", [True, False])
def test_one_bool_stands_for_a_mask_of_one_modality(value: bool) -> None:
    backbone, images = randomised(TINY), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        by_bool, by_mask = backbone(images, value), backbone(images, torch.full((3,), value))
        other = backbone(images, not value)
    assert torch.equal(by_bool.x4, by_mask.x4) and not torch.allclose(by_bool.x4, other.x4)


def test_a_stem_learns_statistics_from_its_own_rows_alone() -> None:
    backbone = DualStreamResNet(TINY).train()
    images = torch.randn(6, 3, 32, 32)
    images[3:] += 5
    expected = {}
    for name, rows in (("visible", images[:3]), ("infrared", images[3:])):
        convolved = getattr(backbone.stem, name).conv1(rows)
        expected[name] = 0.1 * convolved.mean((0, 2, 3)).detach()
    backbone(images[[0, 3, 1, 4, 5, 2]], torch.tensor([0, 1, 0, 1, 1, 0]).bool())
    for name, mean in expected.items():
        bn: nn.BatchNorm2d = getattr(backbone.stem, name).bn1
        torch.testing.assert_close(bn.running_mean, mean, rtol=1e-4, atol=1e-5)


def test_a_stem_without_rows_keeps_its_statistics() -> None:
    backbone = DualStreamResNet(TINY).train()
    backbone(torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.bool))
    assert backbone.stem.visible.bn1.num_batches_tracked == 1
    assert backbone.stem.infrared.bn1.num_batches_tracked == 0
    assert torch.equal(backbone.state_dict()["stem.infrared.bn1.running_mean"], torch.zeros(64))


def test_the_two_stems_start_equal_and_learn_apart() -> None:
    backbone = DualStreamResNet(TINY)
    weights = [backbone.stem.visible.conv1.weight, backbone.stem.infrared.conv1.weight]
    assert torch.equal(*weights)
    backbone(torch.randn(4, 3, 32, 32), torch.arange(4) > 1).x4.sum().backward()
    assert weights[0].grad is not None and weights[1].grad is not None
    assert not torch.equal(weights[0].grad, weights[1].grad)
