from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icre.data.records import MODALITIES, Record
from icre.errors import DataError
from icre.explain.grad_cam import Score, grad_cam, logit_of, partners, similarity_to
from icre.model.backbone import Architecture
from icre.model.head import Output
from icre.model.network import ICRENetwork

IMAGES = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(0))
INFRARED = torch.tensor([False, True, True, False])
CLASSES = torch.tensor([2, 0, 1, 2])
REFERENCE = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
SCORES: list[Callable[[], Score]] = [lambda: similarity_to(REFERENCE), lambda: logit_of(CLASSES)]


def tiny(*components: str) -> ICRENetwork:
    torch.manual_seed(3)
    architecture = Architecture("bottleneck", (1, 1, 1, 1), width=4)
    network = ICRENetwork(
        architecture, classes=3, components=components, input_size=(64, 32), dim=8, heads=2, output_gain=0.5
    )
    nn.init.normal_(network.head.classifier.weight)
    return network.eval()


class LinearHead(nn.Module):
    """Mean over the places, then a matrix: the model for which Grad-CAM has a closed form."""

    def __init__(self, weight_KC: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_KC)

    def forward(self, map_BCHW: Tensor) -> Output:
        pooled = map_BCHW.mean(dim=(2, 3))
        return Output(pooled, pooled, pooled @ self.weight.T)


class DoublePool(nn.Module):
    """The head's pooling in double precision, for differences that are no rounding."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)


def enlarged(heat_Bhw: Tensor) -> Tensor:
    large = F.interpolate(heat_Bhw[:, None], (64, 32), mode="bilinear", align_corners=False)[:, 0]
    return (large / large.amax(dim=(1, 2), keepdim=True)).nan_to_num()


def test_a_linear_model_agrees_with_its_closed_form() -> None:
    network = tiny()
    weight = torch.randn(3, 128, generator=torch.Generator().manual_seed(2)) + 0.1
    network.head = LinearHead(weight)  # type: ignore[assignment]
    with torch.no_grad():
        e = network.feature_map(IMAGES, INFRARED)
    expected = torch.stack([(weight[k][:, None, None] * e[b]).sum(0).relu() / 8 for b, k in enumerate(CLASSES)])
    torch.testing.assert_close(grad_cam(network, IMAGES, INFRARED, logit_of(CLASSES)), enlarged(expected))
    assert expected.flatten(1).any(dim=1).sum() == 3


@pytest.mark.parametrize("components", [(), ("mpfr", "sdce")])
@pytest.mark.parametrize("score", SCORES)
def test_channels_weigh_what_the_score_gains_when_they_grow_everywhere(
    components: tuple[str, ...], score: Callable[[], Score]
) -> None:
    """The mean slope of a channel is the slope along a constant added to it, here by differences."""
    network = tiny(*components).double()
    network.head.pool = DoublePool()  # type: ignore[assignment]
    images, step = IMAGES.double(), 1e-5
    with torch.no_grad():
        e = network.feature_map(images, INFRARED)
        weights = torch.zeros(e.shape[:2], dtype=torch.float64)
        for channel in range(e.shape[1]):
            shift = torch.zeros_like(e)
            shift[:, channel] = step
            up, down = (score()(network.head(e + sign * shift)) for sign in (1, -1))
            weights[:, channel] = (up - down) / (2 * step * e.shape[2] * e.shape[3])
        heat = torch.einsum("bc,bchw->bhw", weights, e).relu()
    got = grad_cam(network, images, INFRARED, score())
    torch.testing.assert_close(got, enlarged(heat).float(), rtol=1e-3, atol=1e-3)
    assert got.flatten(1).any(dim=1).sum() >= 2


@pytest.mark.parametrize("components", [(), ("mpfr", "sdce")])
@pytest.mark.parametrize("modality", [False, True])
def test_an_image_does_not_see_the_others_of_its_batch(components: tuple[str, ...], modality: bool) -> None:
    network = tiny(*components).train()
    rows = [row for row in range(4) if bool(INFRARED[row]) == modality]
    together = grad_cam(network, IMAGES, INFRARED, similarity_to(REFERENCE))
    for row in rows:
        alone = grad_cam(network, IMAGES[row : row + 1], modality, similarity_to(REFERENCE[row : row + 1]))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-3, atol=1e-4)


def test_the_network_stays_as_it_was() -> None:
    network = tiny("mpfr", "sdce").train()
    network.backbone.stem.eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    kept = torch.ones_like(network.head.classifier.weight)
    network.head.classifier.weight.grad = kept
    with torch.no_grad():
        grad_cam(network, IMAGES, INFRARED, similarity_to(REFERENCE))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [name for name, p in network.named_parameters() if p.grad is not None] == ["head.classifier.weight"]
    assert torch.equal(kept, torch.ones_like(kept))


def test_a_score_that_nothing_supports_gives_zeros() -> None:
    assert not grad_cam(tiny(), IMAGES, INFRARED, lambda output: -output.features.sum(dim=1)).any()


def test_maps_reach_from_0_to_1_at_the_size_of_the_images() -> None:
    heat = grad_cam(tiny(), IMAGES, INFRARED, lambda output: output.features.norm(dim=1))
    assert heat.shape == (4, 64, 32)
    assert heat.min() >= 0
    assert torch.equal(heat.amax(dim=(1, 2)), torch.ones(4))


def test_partners_are_the_same_person_in_the_other_modality() -> None:
    records = [Record(pid, modality, "1", "x") for pid in "aab" for modality in MODALITIES]
    features = torch.tensor([[5.0, 0], [0, 2], [3, 0], [4, 3], [9, 9], [-7, 0]])
    expected = torch.tensor([[0.4, 0.8], [1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(partners(features, records, [0, 3, 4]), expected)


def test_a_person_of_one_modality_has_no_partner() -> None:
    with pytest.raises(DataError, match="'a'"):
        partners(torch.ones(2, 2), [Record("a", "visible", "1", "x"), Record("b", "infrared", "1", "y")], [0])
