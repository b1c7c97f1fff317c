from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icre.explain.attention import attention_of, probabilities, strongest_cells
from icre.model.backbone import Architecture
from icre.model.network import ICRENetwork
from icre.model.sdce import Attention, AttentionStage

IMAGES = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))
INFRARED = torch.tensor([False, True, True])
CELLS = [(3, 1), (0, 0), (1, 0)]


def tiny(**options: Any) -> ICRENetwork:
    torch.manual_seed(3)
    architecture = Architecture("bottleneck", (1, 1, 1, 1), width=4)
    network = ICRENetwork(
        architecture, classes=3, input_size=(64, 32), dim=8, heads=2, **{"output_gain": 0.5} | options
    )
    for parameter in network.sdce.parameters() if network.sdce else ():
        # Larger than at the start, so that attention is far from even.
        parameter.data.mul_(4)
    return network.eval()


def by_loops(attention: Attention, query_Nd: Tensor, context_Md: Tensor, token: int) -> Tensor:
    """n x M, in double precision, score by score."""
    wide = query_Nd.shape[1] // attention.heads
    result = torch.zeros(attention.heads, len(context_Md), dtype=torch.float64)
    for head in range(attention.heads):
        part = slice(head * wide, (head + 1) * wide)
        q = attention.query.weight.double()[part] @ query_Nd[token].double()
        scores = [
            float(q @ (attention.key.weight.double()[part] @ source.double())) / math.sqrt(wide)
            for source in context_Md
        ]
        total = sum(math.exp(score) for score in scores)
        result[head] = torch.tensor([math.exp(score) / total for score in scores])
    return result


def test_both_stages_agree_with_a_plain_computation() -> None:
    network = tiny()
    sdce, mpfr = network.sdce, network.mpfr
    assert sdce is not None and mpfr is not None and sdce.shallow_position is not None
    cross, own = sdce.cascade
    assert isinstance(cross, AttentionStage) and isinstance(own, AttentionStage) and cross.norm_context is not None
    found = attention_of(network, IMAGES, INFRARED, cells=CELLS)
    assert found.cells == CELLS
    assert [stage.kind for stage in found.stages] == ["cross", "self"]
    with torch.no_grad():
        maps = network.backbone(IMAGES, INFRARED)
        deep = (sdce.deep(maps.x4) + sdce.deep_position).flatten(2).transpose(1, 2)
        shallow = (mpfr(maps).fused_BdHW + sdce.shallow_position).flatten(2).transpose(1, 2)
        z1 = cross(deep, shallow)
        for image, (row, column) in enumerate(CELLS):
            inputs = [(cross, cross.norm(deep), cross.norm_context(shallow)), (own, own.norm(z1), own.norm(z1))]
            for stage, (module, query, context) in zip(found.stages, inputs, strict=True):
                expected = by_loops(module.attention, query[image], context[image], row * 2 + column)
                got = stage.heads_BnHW[image]
                torch.testing.assert_close(got.flatten(1).double(), expected, rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(stage.mean_BHW[image], got.mean(0))


def test_probabilities_add_up_to_1_for_every_head_and_their_mean() -> None:
    for stage in attention_of(tiny(), IMAGES, INFRARED).stages:
        assert stage.heads_BnHW.shape == (3, 2, 4, 2)
        assert stage.heads_BnHW.min() >= 0
        torch.testing.assert_close(stage.heads_BnHW.sum((2, 3)), torch.ones(3, 2))
        torch.testing.assert_close(stage.mean_BHW.sum((1, 2)), torch.ones(3))
        # The test would be blind if attention were even.
        assert stage.heads_BnHW.max() > 1.5 / 8


def test_values_weighted_by_them_are_what_the_module_returns() -> None:
    torch.manual_seed(0)
    attention = Attention(6, heads=3)
    query, context = torch.randn(2, 4, 6), torch.randn(2, 5, 6)
    values = attention.value(context).unflatten(2, (3, -1)).transpose(1, 2)
    read = probabilities(attention, query, context) @ values
    torch.testing.assert_close(attention.out(read.transpose(1, 2).flatten(2)), attention(query, context))


def test_an_image_does_not_see_the_others_of_its_batch() -> None:
    network = tiny().train()
    together = attention_of(network, IMAGES, INFRARED)
    for row in range(3):
        alone = attention_of(network, IMAGES[row : row + 1], bool(INFRARED[row]))
        assert alone.cells == together.cells[row : row + 1]
        for one, all_three in zip(alone.stages, together.stages, strict=True):
            torch.testing.assert_close(one.heads_BnHW[0], all_three.heads_BnHW[row], rtol=1e-3, atol=1e-5)


def test_the_network_stays_as_it_was_also_after_an_error() -> None:
    network = tiny().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match="outside"):
        attention_of(network, IMAGES, INFRARED, cells=[(0, 0), (4, 0), (0, 0)])
    attention_of(network, IMAGES, INFRARED)
    assert all(module.training and not module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("order", "components", "kinds"),
    [
        ("self_cross", ("mpfr", "sdce"), ["self", "cross"]),
        ("cross", ("sdce",), ["cross"]),
        ("self", ("sdce",), ["self"]),
    ],
)
def test_stages_come_in_the_order_in_which_they_run(order: str, components: Any, kinds: list[str]) -> None:
    found = attention_of(tiny(sdce_order=order, components=components), IMAGES, INFRARED)
    assert [stage.kind for stage in found.stages] == kinds


def test_the_strongest_token_is_the_longest_column() -> None:
    x4 = torch.ones(2, 5, 4, 3)
    x4[0, :, 2, 1] = 1.1
    # One large channel makes a longer column than five that add up to more.
    x4[1, :, 0, 2] = 1.3
    x4[1, :, 3, 0] = torch.tensor([0, 0, 0, 5.0, 0])
    assert strongest_cells(x4) == [(2, 1), (3, 0)]
    network = tiny()
    with torch.no_grad():
        length = F.normalize(network.backbone(IMAGES, INFRARED).x4.pow(2).sum(1).flatten(1), dim=1)
    cells = attention_of(network, IMAGES, INFRARED).cells
    assert [row * 2 + column for row, column in cells] == length.argmax(1).tolist()


@pytest.mark.parametrize("cells", [[(0, 0)], [(0, 0), (0, 2), (0, 0)], [(0, 0), (-1, 0), (0, 0)]])
def test_cells_that_do_not_fit_are_refused(cells: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="cells"):
        attention_of(tiny(), IMAGES, INFRARED, cells=cells)


def test_a_network_without_sdce_has_no_attention() -> None:
    with pytest.raises(ValueError, match="sdce"):
        attention_of(tiny(components=("mpfr",)), IMAGES, INFRARED)
