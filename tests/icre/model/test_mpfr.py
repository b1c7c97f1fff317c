from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icre.model.mpfr import MPFR, Fusion, MaskKind

CHANNELS = (4, 8, 16, 32)
SIZES = ((16, 8), (8, 4), (4, 2), (4, 2))


def maps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, c, *size, generator=generator) for c, size in zip(CHANNELS, SIZES, strict=True)]


def block_mean(x: Tensor, size: tuple[int, int]) -> Tensor:
    step = (x.shape[2] // size[0], x.shape[3] // size[1])
    rows = [
        [x[:, :, step[0] * i : step[0] * (i + 1), step[1] * j : step[1] * (j + 1)].mean((2, 3)) for j in range(size[1])]
        for i in range(size[0])
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def batch_norm(x: Tensor) -> Tensor:
    return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()


def conv1x1(x: Tensor, conv: nn.Module) -> Tensor:
    parameters = dict(conv.named_parameters())
    weight, bias = parameters["weight"][:, :, 0, 0], parameters.get("bias")
    out = torch.einsum("oc,bchw->bohw", weight, x)
    return out if bias is None else out + bias[:, None, None]


@pytest.mark.parametrize("mask", ["sigmoid", "softmax", "none"])
@pytest.mark.parametrize("stages", [(1, 2, 3), (2, 3, 4)])
@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_agrees_with_the_equations_written_out(mask: MaskKind, stages: tuple[int, ...], fusion: Fusion) -> None:
    module = MPFR(CHANNELS, dim=6, stages=stages, mask=mask, fusion=fusion).train()
    aligned = [
        batch_norm(conv1x1(block_mean(maps()[s - 1], (4, 2)), module.align[i].get_submodule("conv"))).relu()
        for i, s in enumerate(stages)
    ]
    scores = [conv1x1(a, c).exp() for a, c in zip(aligned, module.mask.convs, strict=False)]
    if mask == "sigmoid":
        masks = [s / (1 + s) for s in scores]
    elif mask == "softmax":
        masks = [s / (scores[0] + scores[1] + scores[2]) for s in scores]
    else:
        masks = [torch.ones(2, 1, 4, 2)] * 3
    # A convolution of stacked maps is the sum of one convolution a map, each with its own part of the weight.
    kernels = module.fuse.weight.split(6, dim=1) * (3 if fusion == "sum" else 1)
    mixed = [F.conv2d(a * m, kernel, padding=1) for a, m, kernel in zip(aligned, masks, kernels, strict=True)]
    fused = batch_norm(mixed[0] + mixed[1] + mixed[2]).relu()

    got = module(maps())
    torch.testing.assert_close(got.masks_BSHW, torch.cat(masks, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.fused_BdHW, fused, rtol=1e-4, atol=1e-4)


def test_masks_are_shares() -> None:
    sigmoid = MPFR(CHANNELS, dim=6, mask="sigmoid")(maps()).masks_BSHW
    softmax = MPFR(CHANNELS, dim=6, mask="softmax")(maps()).masks_BSHW
    assert sigmoid.shape == softmax.shape == (2, 3, 4, 2)
    assert sigmoid.min() >= 0 and sigmoid.max() <= 1 and sigmoid.std() > 0
    torch.testing.assert_close(softmax.sum(1), torch.ones(2, 4, 2))


@pytest.mark.parametrize("stages", [(), (0, 1, 2), (3, 2, 1), (1, 1, 2), (3, 4, 5)])
def test_impossible_stages_are_refused(stages: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="stages"):
        MPFR(CHANNELS, dim=6, stages=stages)


def test_an_unknown_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="tanh"):
        MPFR(CHANNELS, dim=6, mask="tanh")  # type: ignore[arg-type]


def test_shallow_maps_that_do_not_divide_are_aligned_too() -> None:
    odd = [torch.rand(1, c, *s) for c, s in zip(CHANNELS, ((13, 7), (7, 4), (4, 2), (4, 2)), strict=True)]
    assert MPFR(CHANNELS, dim=6).eval()(odd).fused_BdHW.shape == (1, 6, 4, 2)
