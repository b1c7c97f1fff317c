from __future__ import annotations

import pytest
import torch

from icre.explain.masks import mask_maps
from icre.model.backbone import Architecture
from icre.model.network import ICRENetwork

IMAGES = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))
INFRARED = torch.tensor([False, True, True])


def tiny(*components: str) -> ICRENetwork:
    torch.manual_seed(3)
    architecture = Architecture("bottleneck", (1, 1, 1, 1), width=4)
    return ICRENetwork(architecture, classes=3, components=components, input_size=(64, 32), dim=8, heads=2)


def test_masks_are_those_of_the_evaluated_network_at_the_size_of_the_images() -> None:
    network = tiny("mpfr").eval()
    with torch.no_grad():
        small = network.masks(IMAGES, INFRARED)
    network.train()
    large = mask_maps(network, IMAGES, INFRARED)
    assert large.shape == (3, 3, 64, 32)
    assert network.training
    # The outermost pixels lie in a cell's half towards the edge, where nothing is mixed in.
    for row, y in ((0, 0), (-1, -1)):
        for column, x in ((0, 0), (-1, -1)):
            torch.testing.assert_close(large[:, :, y, x], small[:, :, row, column])
    # The four pixels around the corner of four cells are, together, their mean.
    torch.testing.assert_close(large[:, :, 15:17, 15:17].mean((2, 3)), small[:, :, :2].mean((2, 3)))
    assert large.min() >= 0 and large.max() <= 1


def test_a_network_without_mpfr_has_no_masks() -> None:
    with pytest.raises(ValueError, match="mpfr"):
        mask_maps(tiny("sdce"), IMAGES, INFRARED)
